"""Masks of objects: each has a number of its own, and 0 is where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from castvision.data.reading.pixels import Mask, Pixels, is_missing

if TYPE_CHECKING:
    from pathlib import Path

    from castvision.data.reading.reader import ImageReader


def numbers_in(reader: ImageReader, y: int, x: int, height: int, width: int) -> tuple[Pixels, Mask]:
    """A window of a mask of objects.

    Args:
        reader: The mask, open.
        y: First row.
        x: First column.
        height: Of the window.
        width: Of the window.

    Returns:
        (height, width) int64 numbers, and where the file says that nothing is known (its nodata value but 0).

    Raises:
        ValueError: Negative numbers, fractions, or colours; or a JPEG, which holds no exact numbers.
    """
    if reader.path is not None and is_jpeg(reader.path):
        raise ValueError(
            f"expected exact numbers of objects in {reader.name!r}, got a JPEG, whose compression makes up others; "
            "save them as PNG or TIFF"
        )
    read = reader.read_masked(y, x, height, width)
    numbers = np.ma.getdata(read)
    if numbers.dtype.kind not in "ui" or (numbers.shape[-1] > 1 and (numbers != numbers[..., :1]).any()):
        raise ValueError(
            f"expected one whole number a pixel in {reader.name!r}, the objects' numbers, got {numbers.dtype} of "
            f"{numbers.shape[-1]} channel(s); save them as 16- or 32-bit TIFF or 16-bit PNG"
        )
    numbers = numbers[..., 0]
    is_unknown = np.ma.getmaskarray(read)[..., 0].copy()
    if reader.nodata is not None:
        is_unknown |= is_missing(numbers, reader.nodata)
    is_unknown &= numbers != 0  # 0 is no object, whatever else it is called
    if (numbers[~is_unknown] < 0).any():
        raise ValueError(f"expected numbers of objects >= 0 in {reader.name!r}, got {numbers.min()}")
    return np.where(is_unknown, 0, numbers).astype(np.int64), is_unknown


def is_jpeg(path: Path) -> bool:
    """Whether a file is a JPEG, by its first bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(3) == b"\xff\xd8\xff"
