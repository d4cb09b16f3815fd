"""The scale a model works at: what the command says, else that of training; and what is said where they differ."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from castvision.data.reading import open_array
from castvision.data.reading.labels import check_same_place
from castvision.data.reading.pixels import nearest

if TYPE_CHECKING:
    from castvision.data import ImageReader
    from castvision.data.input_format import InputFormat
    from castvision.data.reading.labels import ClassReader

_LARGEST_FACTOR = 2.0
_SAME_FACTOR = 1.1


def level_to_work_at(reader: ImageReader, mpp: float | None, seen: InputFormat) -> tuple[int, str | None]:
    """The pyramid's level to predict, and what a person is to be told of its scale.

    Args:
        reader: The image.
        mpp: Microns or ground units per pixel that are asked for; None = as in training.
        seen: What the model was trained on.

    Returns:
        Index into ``reader.levels``, and a remark; None where there is none to make.

    Raises:
        ValueError: No level is near that scale, or it is asked for and the image states none.
    """
    is_known = seen.mpp is not None and reader.mpp is not None and seen.mpp_unit == reader.mpp_unit
    trained = "" if seen.mpp is None else f"{seen.mpp:g} {seen.mpp_unit} a pixel"
    if mpp is not None:
        level = choose_level(reader, mpp)
    elif is_known and seen.mpp is not None:
        level = _level_as_trained(reader, seen.mpp, trained)
    else:
        return _level_by_number(reader, seen, trained)
    if not is_known or reader.mpp is None or seen.mpp is None:
        return level, None
    here = reader.mpp * reader.levels[level].downsample
    works_at = f"works on level {level} at {here:g} {reader.mpp_unit} a pixel"
    if abs(math.log(here / seen.mpp)) > math.log(_SAME_FACTOR):
        return level, f"{works_at}, but the model was trained at {trained}"
    return level, None if level == 0 else f"{works_at}, as in training"


def _level_as_trained(reader: ImageReader, mpp: float, trained: str) -> int:
    try:
        return choose_level(reader, mpp)
    except ValueError as error:
        raise ValueError(
            f"the model was trained at {trained}, and {error}; or name one of its own scales by --mpp"
        ) from None


def _level_by_number(reader: ImageReader, seen: InputFormat, trained: str) -> tuple[int, str | None]:
    """Where scales cannot be compared: the level that was trained on, if there is one."""
    if seen.mpp is None and seen.level == 0:
        return 0, None
    level = seen.level if seen.level < len(reader.levels) else 0
    of_training = f"level {seen.level}" + (f" at {trained}" if trained else "")
    stated = "states no scale" if reader.mpp is None else f"states {reader.mpp:g} {reader.mpp_unit} a pixel"
    return level, f"works on level {level}; the model was trained on {of_training}, and the image {stated}"


def choose_level(reader: ImageReader, mpp: float) -> int:
    """The pyramid's level nearest to a scale.

    Args:
        reader: The image.
        mpp: Microns or ground units per pixel.

    Returns:
        Index into ``reader.levels``.

    Raises:
        ValueError: The image states no scale, or one in degrees, or no level is within a factor of 2.
    """
    if reader.mpp is None:
        told = "does not state how large its pixels are; leave out --mpp for it"
        if reader.georeference is not None:
            told = "states its pixels in degrees, got --mpp; bring it to a system in metres, or leave out --mpp for it"
        raise ValueError(f"{reader.name!r} {told}")
    sizes = [reader.mpp * level.downsample for level in reader.levels]
    distances = [abs(math.log(size / mpp)) for size in sizes]
    best = min(range(len(sizes)), key=distances.__getitem__)
    if distances[best] > math.log(_LARGEST_FACTOR) + 1e-6:
        found = ", ".join(f"{size:g}" for size in sizes)
        raise ValueError(f"no level of {reader.name!r} is near --mpp {mpp:g}: it has {found}; resample the image")
    return best


def mask_at_level(mask: ImageReader | ClassReader, image: ImageReader, level: int) -> ImageReader | ClassReader:
    """A mask as a level of its image shows it: the nearest pixel, as windows for training are made.

    Args:
        mask: Of the image's full size, or of the level's.
        image: The image.
        level: Of its pyramid.

    Returns:
        The mask itself, or a reader of its pixels in memory.

    Raises:
        ValueError: A mask of another size, or of other ground.
    """
    check_same_place(image, mask)
    size = image.levels[level]
    if (mask.height, mask.width) == (size.height, size.width):
        return mask
    if (mask.height, mask.width) != (image.height, image.width):
        raise ValueError(
            f"expected a mask of the image's size {image.height} × {image.width}, got {mask.height} × {mask.width}: "
            f"{mask.name!r}"
        )
    rows, columns = nearest(0, size.height, mask.height, size.height), nearest(0, size.width, mask.width, size.width)
    sampled = open_array(np.concatenate([mask.read(row, 0, 1, mask.width)[:, columns] for row in rows.tolist()]))
    sampled.nodata = mask.nodata
    return sampled
