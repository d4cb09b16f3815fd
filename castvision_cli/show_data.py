"""``castvision data show``: what a model gets to see, after augmentation, as one picture."""

from __future__ import annotations

import itertools
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision_cli.arguments import new_parser, positive
from castvision_cli.class_names import keep_class_names, quote_class_names
from castvision_cli.early.data import check_data
from castvision_cli.early.paths import check_paths_of_run, read_config
from castvision_cli.early.signatures import check_options
from castvision_cli.train import find_config, one_line

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from castvision.training.data.data_module import ImageDataModule, Pairs

_DESCRIPTION = """\
Draw samples of a configuration's data as a contact sheet: as the model gets them, after augmentation, with masks laid
over the images and labels in the captions. Training images come in the order of the first epoch.
"""

_EPILOG = """\
Any argument of the data may follow as --data.KEY VALUE, as for castvision train.

examples:
  castvision data show --config quickstart --output sheet.png
  castvision data show --config segmentation_folder --data.root DIR --output sheet.png --count 16 --split val

exit code: 0 drawn, 1 a sample could not be read, 2 wrong arguments or data, nothing written
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line, without the data's arguments."""
    parser = new_parser("castvision data show", _DESCRIPTION, _EPILOG)
    parser.allow_abbrev = False  # what is not known here is an argument of the data
    add = parser.add_argument
    add("--config", required=True, help="a YAML file, or a shipped configuration by name")
    add("--output", required=True, type=Path, metavar="FILE.png", help="the picture; must be new")
    add("--count", type=positive, default=16, metavar="N", help="samples (default: 16)")
    add("--split", choices=("train", "val", "test"), default="train", help="which images (default: train)")
    add("--seed", type=int, default=0, help="of the augmentation (default: 0)")
    add(
        "--allow-class", action="append", default=[], metavar="PREFIX",
        help="let the configuration name classes of another package; it runs their code",
    )  # fmt: skip
    add("--overwrite", action="store_true", help="allow an output that exists")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Draw the sheet.

    Args:
        argv: Arguments after ``castvision data show``; None = the process's.

    Returns:
        0 drawn, 1 a sample could not be read, 2 refused before any sample; the reason is one line on the standard error
        stream.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    stage = 2
    try:
        if arguments.output.suffix.lower() != ".png":
            raise ValueError(f"expected an output ending in .png, got {str(arguments.output)!r}")
        if arguments.output.exists() and not arguments.overwrite:
            raise FileExistsError(f"{str(arguments.output)!r} exists; name another file or pass --overwrite")
        config = find_config(arguments.config)
        contents = [read_config(config)]
        check_overrides(rest)
        check_options("fit", rest, [{"data": contents[0].get("data")}])
        check_paths_of_run(rest, contents)
        check_data(rest, contents)
        # NOTE: imported here: it takes ten seconds, and what is wrong so far should be said at once.
        import torch

        torch.manual_seed(arguments.seed)
        data = build_data(config, rest, arguments.allow_class)
        stage = 1
        from castvision.files import draft

        picture = draw_sheet(data, arguments.split, arguments.count)
        with draft(arguments.output) as temporary:
            temporary.write_bytes(picture)
    except Exception as error:
        # NOTE: in this order: jsonargparse takes a second to import
        if not isinstance(error, (ValueError, TypeError, OSError, KeyError)) and not isinstance(error, _refusal()):
            raise
        sys.stderr.write(f"{parser.prog}: error: {one_line(error)}\n")
        return stage
    sys.stdout.write(f"wrote {arguments.output}\n")
    return 0


def _refusal() -> type[Exception]:
    from jsonargparse import ArgumentError

    return ArgumentError


def check_overrides(words: Sequence[str]) -> None:
    """Refuse what is no argument of the data.

    Raises:
        ValueError: It names the word.
    """
    for word in words:
        if word.startswith("-") and not word.startswith("--data.") and not _is_number(word):
            raise ValueError(f"unknown argument {word!r}; arguments of the data begin with --data.")


def build_data(config: Path, overrides: Sequence[str], allowed: Sequence[str] = ()) -> ImageDataModule:
    """Build a configuration's data module, and nothing else of it.

    Args:
        config: The configuration.
        overrides: ``--data.KEY VALUE`` words.
        allowed: Import paths that the configuration may name beside the usual ones.

    Returns:
        The data module.

    Raises:
        ValueError: No data in the configuration, or anything the data module refuses.
        jsonargparse.ArgumentError: A key or value the data module does not know.
    """
    from jsonargparse import ArgumentParser, get_loader

    from castvision.training import ImageDataModule  # and all others, so that configurations may name them bare
    from castvision.training.class_paths import allow_classes

    keep_class_names()
    content = get_loader("yaml")(config.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "data" not in content:
        raise ValueError(f"expected a section 'data' in {str(config)!r}, found none")
    logging.getLogger("castvision").setLevel(logging.WARNING)
    allow_classes(allowed)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_subclass_arguments(ImageDataModule, "data", required=True)
    parsed = parser.parse_args([f"--data={json.dumps(content['data'])}", *quote_class_names(overrides)])
    build = parser.instantiate if hasattr(parser, "instantiate") else parser.instantiate_classes  # the older name
    data: ImageDataModule = build(parsed).data
    return data


def _is_number(word: str) -> bool:
    return word.lstrip("-").replace(".", "", 1).isdecimal()


def draw_sheet(data: ImageDataModule, split: str, count: int) -> bytes:
    """Draw samples as the model gets them.

    Args:
        data: The data module.
        split: "train", "val" or "test".
        count: At most so many samples.

    Returns:
        The bytes of a PNG.

    Raises:
        ValueError: A sample that cannot be read; its message names it.
        FileNotFoundError: No such split.
    """
    from castvision.data.datasets.batch import Batch
    from castvision.visualization.plots import as_png, plot_samples, visible

    if data.task_kind == "slides":
        raise ValueError("expected images to draw, got bags of embeddings; castvision predict draws their attention")
    data.prepare_data()
    dataset: Any = data.dataset(split)
    order = iter(data.sampler(dataset)) if split == "train" else iter(range(len(dataset)))
    chosen = list(itertools.islice(order, count))
    batch = Batch(*data.collate([dataset[index] for index in chosen]))
    batch = data.augment_batch(batch) if split == "train" else batch
    images, targets, extras, _ = batch
    names = [_name(dataset, index) for index in chosen]
    heading = f"{type(data).__name__}, {split}: {len(chosen)} samples of {' × '.join(map(str, images.shape[1:]))}"
    pixels = visible(images.float(), data.mean, data.std, extras.get("pixel_mask"))
    return as_png(plot_samples(pixels, targets, names, data.class_names, heading))


def _name(dataset: Pairs, index: int) -> str:
    name = getattr(dataset, "name", None)
    if callable(name):
        return Path(str(name(index))).name
    samples = getattr(dataset, "samples", None)  # torchvision's folders
    return Path(samples[index][0]).name if samples else f"image {index}"
