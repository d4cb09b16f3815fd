"""Masks, tables and polygons of images of any size. ``castvision predict``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.inference.files import OutputFolder

BIG_SUFFIXES = frozenset(
    {".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".zarr", ".jp2", ".vrt", ".img"}
)
RUN_FILE = "run.json"

_DESCRIPTION = """\
Predict images of any size: photographs, GeoTIFFs, whole slides. Large ones are read and written tile by tile.

A segmentation model writes for each image masks/NAME.tif (tiled, with overviews and georeference; NAME.png for images
of at most 16 megapixels without georeference), whose values are the classes and, where there is no data, the largest
value, and overlays/NAME.png; on request polygons/NAME.geojson and probabilities/NAME.tif. A classification model gives
its most probable classes. For all: predictions.csv (classes with pixels, areas, probabilities) and summary.json.
"""

_EPILOG = """\
examples:
  %(prog)s scan.tif --model runs/tissue/best.ckpt --output out --mpp 0.5
  %(prog)s photos/ 'more/*.jpg' --model runs/cracks/best.ckpt --output out --geojson

exit code: 0 all images done, 1 some images failed (named at the end), 2 wrong arguments, nothing written
"""


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, folders of images, patterns such as 'scans/*.tif'")
    add("--model", required=True, help="a checkpoint, or a folder in timm's layout")
    add("--output", required=True, type=Path, metavar="DIR", help="where the results go; must be new or empty")
    add("--overwrite", action="store_true", help="allow an output folder that holds files; same names are replaced")
    add("--resume", action="store_true", help="go on with a run that was interrupted, also within an image")
    add_tile_arguments(parser)
    group = parser.add_argument_group("what is predicted")
    add = group.add_argument
    add("--mpp", type=_above_zero, help="microns (or ground units) per pixel to work at: the pyramid's nearest level")
    add("--mask", type=Path, help="work only where this image is > 0; for several images a folder with the same names")
    add("--min-foreground", type=_share, default=0.0, help="leave out tiles with a smaller share of mask (default: 0)")
    add("--skip-blank", type=_from_zero, metavar="RANGE", help="leave out tiles that vary by no more (0: constant)")
    group = parser.add_argument_group("what is written")
    add = group.add_argument
    add("--overlay", action=argparse.BooleanOptionalAction, default=True, help="the picture with the mask laid over it")
    add("--geojson", action="store_true", help="polygons of all classes but a background")
    add("--min-area", type=_positive, default=1, metavar="PIXELS", help="smallest polygon (default: 1)")
    add("--simplify", type=_from_zero, default=0.0, metavar="PIXELS", help="tolerance of outlines (default: 0, exact)")
    add("--probabilities", action="store_true", help="probabilities of all classes as float32 TIFF (4 bytes each)")
    add("--top", type=_positive, default=5, help="classes listed by a classification model (default: 5)")
    return parser


def add_tile_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of tiled inference, the same for every command that runs it."""
    group = parser.add_argument_group("tiles")
    add = group.add_argument
    add("--tile", type=_positive, metavar="PIXELS", help="side of a tile (default: the size the model was trained for)")
    add(
        "--overlap", type=_natural, metavar="PIXELS", help="shared by neighbouring tiles (default: an eighth of a tile)"
    )
    add(
        "--halo",
        type=_natural,
        metavar="PIXELS",
        help="discarded at a tile's borders (default: a quarter of the overlap)",
    )
    add("--batch-size", type=_positive, default=4, help="tiles at once (default: 4)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of the model (default: fp32)")
    add("--tta", choices=["none", "flips", "d4"], default="none", help="average over 4 flips or 8 flips and turns")


def _number(text: str, kind: type, low: float, what: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not low <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    return value


def _positive(text: str) -> int:
    return int(_number(text, int, 1, "a whole number >= 1"))


def _natural(text: str) -> int:
    return int(_number(text, int, 0, "a whole number >= 0"))


def _from_zero(text: str) -> float:
    return float(_number(text, float, 0, "a number >= 0"))


def _above_zero(text: str) -> float:
    return float(_number(text, float, 1e-12, "a number > 0"))


def _share(text: str) -> float:
    value = _from_zero(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"expected a number in 0..1, got {text}")
    return value


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Predict.

    Args:
        argv: Arguments; None = the process's.
        prog: Name shown in messages; None = the command that runs.

    Returns:
        0 all done, 1 some images failed, 2 wrong arguments (nothing was written), 130 interrupted.
    """
    if prog is None:
        prog = "predict.py" if Path(sys.argv[0]).name == "predict.py" else "castvision predict"
    parser = build_parser(prog)
    arguments = parser.parse_args(argv)
    # NOTE: imported here, so that --help and mistyped options answer at once.
    from castvision.inference.files import SUFFIXES, expand_patterns, find_images, match_masks

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damaged files are reported once, by us
    try:
        suffixes = SUFFIXES | BIG_SUFFIXES
        images = find_images(expand_patterns(arguments.inputs), outside=arguments.output, suffixes=suffixes)
        settings = _settings_of_run(arguments)
        output = _open_output(arguments, settings, images)
        masks = match_masks(arguments.mask, images)
        from castvision.inference.prediction import predict_images
        from castvision.inference.prediction_options import Options
        from castvision.inference.predictor import load_model
        from castvision.inference.showing import resolve_device

        predictor = load_model(arguments.model, device=resolve_device(arguments.device))
        options = Options.from_arguments(arguments, predictor)
        output.write(RUN_FILE, json.dumps(settings, indent=1).encode())
    except (ValueError, TypeError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # a command's only way to speak
        return 2
    try:
        return predict_images(images, masks, predictor, output, options)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command with --resume goes on", file=sys.stderr)
        return 130


def _settings_of_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What must not change between a run and its continuation."""
    passing = {"inputs", "output", "overwrite", "resume", "device"}
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    settings = {key: value for key, value in settings.items() if key not in passing}
    model = Path(arguments.model)
    if model.is_file():
        settings["model_file"] = [model.stat().st_size, model.stat().st_mtime_ns]
    return settings


def _open_output(arguments: argparse.Namespace, settings: dict[str, Any], images: dict[Path, str]) -> OutputFolder:
    from castvision.inference.files import OutputFolder

    output, run_file = arguments.output, arguments.output / RUN_FILE
    if not (arguments.resume and output.is_dir() and any(output.iterdir())):
        return OutputFolder(output, overwrite=arguments.overwrite, protected=images)
    if not run_file.is_file():
        raise FileNotFoundError(f"nothing to resume in {str(output)!r}: no {RUN_FILE}; leave out --resume")
    earlier = json.loads(run_file.read_text(encoding="utf-8"))
    changed = [key for key in settings if earlier.get(key) != settings[key]]
    if changed:
        told = ", ".join(f"{key} was {earlier.get(key)!r}, is {settings[key]!r}" for key in changed)
        raise ValueError(f"cannot resume {str(output)!r}: {told}; use the same options, or another folder")
    return OutputFolder(output, overwrite=True, protected=images)


if __name__ == "__main__":
    sys.exit(main())
