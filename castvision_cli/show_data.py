"""``castvision data show``: what a model gets to see, after augmentation, as one picture."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision_cli.train import find_config, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from castvision.training.data.data_module import ImageDataModule, Pairs
    from castvision.visualization.figures import Panel

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

_OPACITY = 0.5


def build_parser() -> argparse.ArgumentParser:
    """The command line, without the data's arguments."""
    parser = argparse.ArgumentParser(
        "castvision data show",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", required=True, help="a YAML file, or a shipped configuration by name")
    add("--output", required=True, type=Path, metavar="FILE.png", help="the picture; must be new")
    add("--count", type=_positive, default=16, metavar="N", help="samples (default: 16)")
    add("--split", choices=("train", "val", "test"), default="train", help="which images (default: train)")
    add("--seed", type=int, default=0, help="of the augmentation (default: 0)")
    add("--overwrite", action="store_true", help="allow an output that exists")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text}")
    return value


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
        # NOTE: imported here: it takes ten seconds, and a wrong name should be said at once.
        import torch

        torch.manual_seed(arguments.seed)
        data = build_data(config, rest)
        stage = 1
        picture = draw_sheet(data, arguments.split, arguments.count)
        _write(arguments.output, picture)
    except _expected() as error:
        sys.stderr.write(f"{parser.prog}: error: {one_line(error)}\n")
        return stage
    sys.stdout.write(f"wrote {arguments.output}\n")
    return 0


def _expected() -> tuple[type[Exception], ...]:
    from jsonargparse import ArgumentError

    return (ValueError, TypeError, OSError, KeyError, ArgumentError)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def build_data(config: Path, overrides: Sequence[str]) -> ImageDataModule:
    """Build a configuration's data module, and nothing else of it.

    Args:
        config: The configuration.
        overrides: ``--data.KEY VALUE`` words.

    Returns:
        The data module.

    Raises:
        ValueError: No data in the configuration, or anything the data module refuses.
        jsonargparse.ArgumentError: A key or value the data module does not know.
    """
    import yaml
    from jsonargparse import ArgumentParser

    from castvision.training import ImageDataModule  # and all others, so that configurations may name them bare

    for word in overrides:
        if word.startswith("-") and not word.startswith("--data.") and not _is_number(word):
            raise ValueError(f"unknown argument {word!r}; arguments of the data begin with --data.")
    content = yaml.safe_load(config.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "data" not in content:
        raise ValueError(f"expected a section 'data' in {str(config)!r}, found none")
    logging.getLogger("castvision").setLevel(logging.WARNING)
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_subclass_arguments(ImageDataModule, "data", required=True)
    parsed = parser.parse_args([f"--data={json.dumps(content['data'])}", *overrides])
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
    from castvision.visualization import figures

    data.prepare_data()
    dataset: Any = data.dataset(split)
    order = iter(data.sampler(dataset)) if split == "train" else iter(range(len(dataset)))
    places = list(itertools.islice(order, count))
    batch = Batch(*data.collate([dataset[place] for place in places]))
    images, targets, *_ = data.augment_batch(batch) if split == "train" else batch
    pictures = _visible(images.float(), data)
    panels: list[Panel] = []
    for number, place in enumerate(places):
        caption = figures.shorten(_name(dataset, place), 34)
        panels += _panels(pictures[number], targets[number], caption, data.class_names)
    heading = f"{type(data).__name__}, {split}: {len(places)} samples of {' × '.join(map(str, images.shape[1:]))}"
    figure = figures.grid_figure(panels, heading, columns=4)
    if targets.ndim == 3:
        _add_legend(figure, targets, data.class_names)
    return figures.save_figure(figure)


def _name(dataset: Pairs, place: int) -> str:
    name = getattr(dataset, "name", None)
    if callable(name):
        return Path(str(name(place))).name
    samples = getattr(dataset, "samples", None)  # torchvision's folders
    return Path(samples[place][0]).name if samples else f"image {place}"


def _visible(images: Tensor, data: ImageDataModule) -> Any:
    """(B, C, height, width) normalised to (B, height, width, C) uint8, one range for all images.

    The range is 0..1 where the values keep to it, give or take a change of colours; of floats in other units it is
    2.5 standard deviations to both sides of the mean.
    """
    import torch

    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (data.mean, data.std))
    values = images * std + mean
    low, span = torch.zeros_like(mean), torch.ones_like(std)
    if values.min() < -0.5 or values.max() > 1.5:
        low, span = mean - 2.5 * std, 5 * std
    shown = ((values - low) / span).clamp(0, 1) * 255
    return shown.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def _panels(picture: Any, target: Tensor, caption: str, class_names: Sequence[str]) -> list[Panel]:
    from castvision.inference.showing import has_background
    from castvision.visualization import pictures
    from castvision.visualization.figures import Panel

    shown = pictures.display_picture(picture)
    if target.ndim < 2:
        return [Panel(f"{caption}\n{_label(target, class_names)}", shown)]
    mask = target.numpy().copy()
    mask[mask == 255] = -1  # drawn dark
    labels = pictures.resize_labels(mask, shown.shape[:2])
    line = pictures.line_width(shown.shape[0] / mask.shape[0])
    untinted = 0 if has_background(class_names) else None
    overlay = pictures.overlay_labels(shown, labels, opacity=_OPACITY, untinted=untinted, line=line)
    return [Panel(caption, shown), Panel(_shares(mask, class_names), overlay)]


def _label(target: Tensor, class_names: Sequence[str]) -> str:
    from castvision.visualization.figures import shorten

    if target.ndim == 0:
        return shorten(class_names[int(target)], 34)
    names = [class_names[place] for place in target.nonzero()[:, 0].tolist()]
    return shorten(", ".join(names) or "no label", 34)


def _shares(mask: Any, class_names: Sequence[str]) -> str:
    """The two largest classes with their share of the pixels, and what is ignored."""
    import numpy as np

    from castvision.visualization.figures import shorten

    counts = np.bincount(mask.ravel() + 1, minlength=len(class_names) + 1) / mask.size
    largest = sorted(range(len(class_names)), key=lambda place: -counts[place + 1])[:2]
    parts = [f"{shorten(class_names[place], 18)} {counts[place + 1]:.0%}" for place in largest if counts[place + 1] > 0]
    return ", ".join([*parts, *([f"ignored {counts[0]:.0%}"] if counts[0] > 0 else [])])


def _add_legend(figure: Any, targets: Tensor, class_names: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    from castvision.inference.showing import has_background
    from castvision.visualization.figures import shorten
    from castvision.visualization.pictures import cluster_colours

    colours = cluster_colours(len(class_names)) / 255
    handles = []
    present = sorted(set(targets.flatten().tolist()) - {255})[:20]
    for place in present:
        is_untinted = place == 0 and has_background(class_names)
        face = "none" if is_untinted else tuple(colours[place])
        handles.append(Patch(facecolor=face, edgecolor="0.5", label=shorten(class_names[place], 26)))
    if (targets == 255).any():
        handles.append(Patch(facecolor="0.15", edgecolor="0.5", label="ignored (255)"))
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
