"""What a checkpoint's facts and the images' headers say, before models are imported: whether anything can be done.

An image that cannot be read is named at the end, once the others are done; here only a command is refused that could
not do a single one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from castvision_cli.early.light import without_models
from castvision_cli.early.paths import DECODED_WHOLE
from castvision_cli.early.values import registered_names, trained_files

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from castvision.data.input_format import InputFormat
    from castvision.data.reading.labels import LabelMap
    from castvision.data.reading.reader import ImageReader
    from castvision.inference.onnx_model import OnnxParts
    from castvision.inference.predictor import LoadedParts

_LOOKED_AT = 16
"""Images of which one must do; where more than these are unreadable, the rest is not looked at."""
_PATCH = re.compile(r"_patch(\d+)_")
"""How names of ViTs state the side of a patch."""
_SMALL = 1 << 24
"""Pixels of a mask, and bytes of a photograph, that are read in a fraction of a second."""
_OF_PIXELS = {
    "tile": None, "overlap": None, "halo": None, "tta": "none", "geojson": False, "min_area": 1, "simplify": 0.0,
    "probabilities": False, "mpp": None, "mask": None, "min_foreground": 0.0, "skip_blank": None,
}  # fmt: skip
"""Options that mean something for models of pixels, and their defaults."""


@dataclass(frozen=True)
class Told:
    """What is known of a model that is not loaded yet.

    Attributes:
        name: As messages call it.
        task: What it was trained for; None = it is untrained.
        class_names: In the order of its logits.
        seen: What it was trained on; None where that is not told.
        label_map: What labels in masks meant in training.
        patch_size: Side of a patch; None where the name does not state it.
    """

    name: str
    task: str | None
    class_names: tuple[str, ...] = ()
    seen: InputFormat | None = None
    label_map: Mapping[str, int | str] | None = None
    patch_size: int | None = None


def told_of(model: str) -> Told | None:
    """What a checkpoint of ours says of itself, and the name of a registered model; None where only loading tells."""
    model = str(trained_files().get(model, model))
    if not Path(model).is_file():
        return Told(model, None, patch_size=_patch_of(model)) if model in registered_names() else None
    with without_models():
        from castvision.checkpoint_facts import stored_facts
        from castvision.data.input_format import input_format
    facts = stored_facts(model)
    if facts is None:
        return None
    try:
        task, names = str(facts["task"]), tuple(str(name) for name in facts["class_names"])
        if not names and task not in ("features", "slides"):
            return None  # loading gives them names
        name, kwargs = str(facts["model_name"]), dict(facts["model_kwargs"])
        patch_size = None if "patch_size" in kwargs else _patch_of(name)
        return Told(name, task, names, input_format(facts), facts.get("label_map"), patch_size)
    except (KeyError, TypeError, ValueError):
        return None  # the message of whoever loads it says what is wrong


def _patch_of(model_name: str) -> int | None:
    found = _PATCH.search(f"{model_name}_")
    return None if found is None else int(found[1])


def check_tiles(arguments: argparse.Namespace, told: Told | None) -> None:
    """Refuse tiles that are no multiple of a model's patches, or that cannot overlap as they are to.

    Args:
        arguments: With what ``castvision_cli.arguments.add_tile_arguments`` or ``embed`` adds.
        told: Of the model; None = its patches are not known.

    Raises:
        ValueError: It names the options.
    """
    with without_models():
        from castvision.inference.tiling import make_grid

    tile, overlap = arguments.tile, arguments.overlap
    if tile is None:
        return
    if told is not None and told.patch_size is not None and tile % told.patch_size:
        raise ValueError(f"expected --tile a multiple of {told.patch_size} (the patch of {told.name}), got {tile}")
    if "halo" in arguments:
        overlap = tile // 8 if overlap is None else overlap
        make_grid((tile, tile), tile, overlap, overlap // 4 if arguments.halo is None else arguments.halo)


def check_of_pixels(arguments: argparse.Namespace, told: Told | LoadedParts | OnnxParts | None) -> None:
    """Refuse what says how pixels are predicted, or drawn, of a model that classifies whole images.

    Args:
        arguments: Of predict or evaluate.
        told: Of the model; None = its task is not known before it is loaded.

    Raises:
        ValueError: It names the options.
    """
    if told is None or told.task not in ("classification", "multilabel"):
        return
    asked = [f"--{name.replace('_', '-')}" for name, default in _OF_PIXELS.items()
             if getattr(arguments, name, default) != default]  # fmt: skip
    if asked:
        raise ValueError(f"{told.name} classifies whole images: it takes no {', '.join(asked)}; leave it out")


def check_images(
    images: Iterable[Path],
    told: Told | None,
    bands: Sequence[int] | None = None,
    look: Callable[[Path, ImageReader], None] = lambda path, reader: None,
) -> None:
    """Refuse images of which none can be used.

    Args:
        images: Files.
        told: Of the model; None = its channels are not known.
        bands: Channels that are asked for.
        look: What else an image must pass.

    Raises:
        ValueError: The first image's error, where all have one; OSError likewise.
    """
    with without_models():
        from castvision.data.reading import open_image
        from castvision.data.reading.agreement import check_same_order
        from castvision.inference.tile_model import check_channels, open_as

    errors: list[Exception] = []
    paths = list(images)
    for path in paths[:_LOOKED_AT]:
        if path.suffix.lower() in DECODED_WHOLE and path.is_file() and path.stat().st_size > _SMALL:
            return
        try:
            seen = None if told is None else told.seen
            with open_image(path, bands=bands) if seen is None else open_as(seen, path, bands) as reader:
                if seen is not None:
                    check_same_order(seen.channel_names, reader)
                if seen is not None and told is not None and told.task == "segmentation":
                    check_channels(reader.channels, seen.in_chans)
                look(path, reader)
            return
        except (ValueError, TypeError, OSError, ImportError) as error:
            errors.append(error)
        except (RuntimeError, MemoryError):
            return
    if paths and len(errors) == len(paths):
        raise errors[0]


def masks_fit(
    masks: Mapping[Path, Path], labels: LabelMap, told: Told, mpp: float | None
) -> Callable[[Path, ImageReader], None]:
    """What `check_images` is to look for where each image has a mask: its size, and labels that are classes.

    Args:
        masks: Of each image.
        labels: What the labels mean.
        told: Of a segmentation model that says what it was trained on.
        mpp: The scale that is asked for.
    """
    from castvision.data.reading.labels import ClassReader
    from castvision.inference.scale import level_to_work_at, mask_at_level
    from castvision.inference.truth import check_labels

    def look(path: Path, reader: ImageReader) -> None:
        if told.seen is None or path not in masks:
            return
        level, _ = level_to_work_at(reader, mpp, told.seen)
        with ClassReader(masks[path], labels) as mask:
            if mask.height * mask.width <= _SMALL:
                check_labels(mask_at_level(mask, reader, level), len(told.class_names))

    return look


def areas_fit(
    areas: Mapping[Path, Path], look: Callable[[Path, ImageReader], None]
) -> Callable[[Path, ImageReader], None]:
    """What `check_images` is to look for where images have a mask of where to work.

    Args:
        areas: Of each image.
        look: What else.
    """
    from castvision.data.reading import open_image
    from castvision.data.reading.agreement import check_area

    def both(path: Path, reader: ImageReader) -> None:
        look(path, reader)
        if path in areas and (areas[path].suffix.lower() not in DECODED_WHOLE or areas[path].stat().st_size <= _SMALL):
            with open_image(areas[path]) as area:
                check_area(area, reader)

    return both


def scale_fits(told: Told | None, mpp: float | None) -> Callable[[Path, ImageReader], None]:
    """What `check_images` is to look for where a segmentation model works at a scale of its own, or at a given one."""

    def look(path: Path, reader: ImageReader) -> None:
        if told is not None and told.seen is not None and told.task == "segmentation":
            from castvision.inference.scale import level_to_work_at

            level_to_work_at(reader, mpp, told.seen)

    return look
