"""Arguments that several commands share and the values they take. Nothing heavy is imported before they are parsed."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from castvision.inference.onnx_model import OnnxPredictor
    from castvision.inference.predictor import Predictor

_DRIVER = "libcuda.so.1"
_NOT_BUILT = re.compile(r"^(cuda|hip)\b.*= None$", re.MULTILINE)


def _number(
    kind: type[int] | type[float], what: str, low: float, high: float = sys.float_info.max
) -> Callable[[str], Any]:
    """A parser's type: numbers from ``low`` to ``high``, which a message calls ``what``."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
        return value

    return parse


positive = _number(int, "a whole number >= 1", 1)
natural = _number(int, "a whole number >= 0", 0)
from_zero = _number(float, "a number >= 0", 0)
above_zero = _number(float, "a number > 0", 1e-12)
share = _number(float, "a number in 0..1", 0, 1)


def bands(text: str) -> list[int]:
    """A parser's type: channels, numbered from 1 on."""
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() and int(number) >= 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"expected numbers of bands from 1 on, such as 4,1,2, got {text!r}")
    return [int(number) for number in numbers]


def add_bands_argument(parser: argparse._ActionsContainer) -> None:
    """Which channels of the images a model is given."""
    told = "channels to read, in this order, such as 4,1,2 (default: those the model was trained on)"
    parser.add_argument("--bands", type=bands, metavar="N,N,…", help=told)


class Parser(argparse.ArgumentParser):
    """Names the option that a mistyped one is near to."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Keep the words for `error`."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """As argparse does, with the question."""
        known = list(self._option_string_actions)
        flags = {word.partition("=")[0] for word in self._words if word.startswith("--") and word != "--"}
        for flag in sorted(flags):
            if any(option.startswith(flag) for option in known):
                continue  # one of them, or a beginning, which argparse takes
            near = difflib.get_close_matches(flag, known, n=1)
            if near:
                message += f"; did you mean {near[0]} in place of {flag}?"
        super().error(message)


def new_parser(prog: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser that prints its texts as they are written, and asks whether a mistyped option was meant otherwise."""
    return Parser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_output_arguments(parser: argparse.ArgumentParser, what: str = "results") -> None:
    """Where a command writes."""
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="DIR", help=f"where the {what} go; must be new or empty")
    add("--overwrite", action="store_true", help="allow an output folder that holds files; same names are replaced")


def add_device_argument(parser: argparse._ActionsContainer) -> None:
    """Where a model runs; see `resolve_device`."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def add_cluster_argument(parser: argparse._ActionsContainer) -> None:
    """Whether other processes work, see `castvision.inference.cluster`."""
    told = "work in N processes of this machine (default: one a core), or on the Dask cluster of a scheduler"
    parser.add_argument("--cluster", metavar="local[:N]|tcp://HOST:PORT", help=told)


def add_attention_argument(parser: argparse._ActionsContainer) -> None:
    """Which attention a ViT of timm's runs with."""
    told = "of a ViT of timm's, which then takes images of any size: near_far, or full (default: as it was trained)"
    parser.add_argument("--attention", choices=["near_far", "full"], help=told)


def add_scale_argument(parser: argparse._ActionsContainer) -> None:
    """The scale images are worked on at."""
    told = "microns (or ground units, of a GeoTIFF in metres or feet) per pixel to work at: the pyramid's nearest level"
    parser.add_argument("--mpp", type=above_zero, help=f"{told} (default: that of training)")


def add_tile_arguments(parser: argparse.ArgumentParser) -> None:
    """How tiled inference runs; see `tile_options`."""
    group = parser.add_argument_group("tiles")
    add = group.add_argument
    tile = "side of a tile (default: the size the model was trained for; no tiles, if it was trained on resized images)"
    add("--tile", type=positive, metavar="PIXELS", help=tile)
    add("--overlap", type=natural, metavar="PIXELS", help="shared by neighbouring tiles (default: an eighth of a tile)")
    halo = "discarded at a tile's borders (default: a quarter of the overlap)"
    add("--halo", type=natural, metavar="PIXELS", help=halo)
    add("--batch-size", type=positive, default=4, help="tiles at once (default: 4)")
    add_device_argument(group)
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the model (default: fp32)")
    add("--tta", choices=["none", "flips", "d4"], default="none", help="average over 4 flips or 8 flips and turns")


def tile_options(arguments: argparse.Namespace, predictor: Predictor | OnnxPredictor) -> dict[str, Any]:
    """Keywords for `castvision.inference.tiled_inference`: what was given, else what suits the model.

    Raises:
        ValueError: A tile the model does not take.
    """
    parts = predictor.parts
    trained = [-(-side // step) * step for side, step in zip(parts.input.img_size, parts.patch_size, strict=True)]
    tile = parts.fixed_size or (trained[0], trained[1])
    if arguments.tile is not None:
        tile = arguments.tile, arguments.tile
    if parts.fixed_size is not None and tile != parts.fixed_size:
        raise ValueError(f"expected --tile {parts.fixed_size[0]}: {parts.name} takes no other size, got {tile[0]}")
    if arguments.tta == "d4" and parts.fixed_size is not None and len(set(tile)) > 1:
        raise ValueError(f"expected --tta none or flips: {parts.name} takes {tile[0]} × {tile[1]} only, not turned")
    if any(side % step for side, step in zip(tile, parts.patch_size, strict=True)):
        raise ValueError(
            f"expected --tile a multiple of {parts.patch_size[0]} (the patch of {parts.name}), got {tile[0]}"
        )
    overlap = min(tile) // 8 if arguments.overlap is None else arguments.overlap
    same = {name: getattr(arguments, name) for name in ("halo", "batch_size", "precision", "tta")}
    return {"tile": tile, "overlap": overlap, "context_size": parts.context_size, "mask_nodata": True, **same}


def fits_images(arguments: argparse.Namespace, predictor: Predictor | OnnxPredictor) -> bool:
    """Whether a model is shown whole images brought to one size: it was trained so, and no tile is asked for."""
    parts = predictor.parts
    return parts.task == "segmentation" and parts.input.resize == "fit" and arguments.tile is None


def check_device(name: str, flag: str = "--device") -> None:
    """Refuse CUDA where torch was built without it, or the system without its driver; torch is not imported for it.

    Args:
        name: Of the device.
        flag: The argument it came by, for the message.

    Raises:
        ValueError: There is none.
    """
    spec = find_spec("torch")
    if name.partition(":")[0] != "cuda" or "torch" in sys.modules or spec is None or spec.origin is None:
        return
    version = Path(spec.origin).with_name("version.py")
    text = version.read_text(encoding="utf-8") if version.is_file() else ""
    missing = {*_NOT_BUILT.findall(text)}
    if {"cuda", "hip"} == missing:
        raise ValueError(
            f"expected a device of this machine (cpu, ...), got {name!r}: torch is installed without CUDA; leave out "
            f"{flag}, or install torch with it"
        )
    if missing == {"hip"} and sys.platform == "linux" and not _has_library(_DRIVER):
        raise ValueError(
            f"expected a device of this machine (cpu, ...), got {name!r}: NVIDIA's driver ({_DRIVER}) is not "
            f"installed; leave out {flag}, or install the driver"
        )


def _has_library(name: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def resolve_device(name: str) -> torch.device:
    """Turn ``auto`` into CUDA where there is one.

    Raises:
        ValueError: No such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]  # torch adds advice on further lines
        raise ValueError(f"expected a device of this machine (cpu, cuda, ...), got {name!r}: {reason}") from None
    return device
