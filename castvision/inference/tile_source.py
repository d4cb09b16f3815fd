"""Tiles as a network's input, and which of their pixels hold something."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data import ImageReader, open_array, open_image

if TYPE_CHECKING:
    import os

    from castvision.inference.tiling import Tile

Pixels = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Skip:
    """What is left out and stays nodata. Pixels that are the image's nodata, or not finite, are left out in any case.

    Attributes:
        mask: Where to work: pixels > 0 in any channel; of any size, laid over the whole image.
        min_foreground: A tile is not run if fewer than this share of its used pixels is left, 0..1; those without any
            never are.
        blank: A tile is not run if each channel varies by no more than this; 0 = constant tiles, None = run them.
    """

    mask: ImageReader | Pixels | None = field(default=None, repr=False)
    min_foreground: float = 0.0
    blank: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_foreground <= 1:
            raise ValueError(f"expected min_foreground in 0..1, got {self.min_foreground}")
        if self.blank is not None and not self.blank >= 0:
            raise ValueError(f"expected blank >= 0 or None, got {self.blank}")


@dataclass(frozen=True)
class Patch:
    """A tile as it was read.

    Attributes:
        pixels: (C, tile height, tile width) float32; nodata and what is not finite is 0. None = not to be run.
        valid: (rows used, columns used) bool; None = every pixel.
        has_data: (tile height, tile width) bool; None = every pixel.
    """

    pixels: np.ndarray[Any, np.dtype[np.float32]] | None
    valid: Mask | None
    has_data: Mask | None = None


def as_reader(image: ImageReader | Pixels | str | os.PathLike[str]) -> tuple[ImageReader, bool]:
    """A reader, and whether it was opened here and is ours to close."""
    if isinstance(image, ImageReader):
        return image, False
    return (open_array(image) if isinstance(image, np.ndarray) else open_image(image)), True


class TileSource:
    """Reads a grid's tiles from one level of an image.

    Args:
        image: The image.
        level: Of its pyramid.
        skip: What to leave out.

    Raises:
        ValueError: No such level.
    """

    def __init__(self, image: ImageReader, level: int, skip: Skip) -> None:
        if not 0 <= level < len(image.levels):
            raise ValueError(f"expected a level in 0..{len(image.levels) - 1} of {image.name!r}, got {level=}")
        self.image, self.level, self.skip = image, level, skip
        self.size = image.levels[level].height, image.levels[level].width
        self._mask = open_array(skip.mask) if isinstance(skip.mask, np.ndarray) else skip.mask

    def read(self, tile: Tile) -> Patch:
        """Read one tile; where the image is shorter than a tile it is continued by reflection."""
        y, x, start = tile.y, tile.x, (tile.y.start, tile.x.start)
        height, width = min(y.stop, self.size[0]) - y.start, min(x.stop, self.size[1]) - x.start
        pixels = self.image.read(y.start, x.start, height, width, self.level)  # (height, width, C)
        has_data = self._has_data(pixels)
        valid = has_data if self._mask is None else has_data & self._foreground(self._mask, (*start, height, width))
        used = valid[y.low - y.start : y.high - y.start, x.low - x.start : x.high - x.start]
        if self._is_left_out(pixels, used):
            return Patch(None, used)
        values = _filled(pixels, has_data)
        missing = (0, y.stop - y.start - height), (0, x.stop - x.start - width)
        if missing != ((0, 0), (0, 0)):
            values, has_data = np.pad(values, (*missing, (0, 0)), mode="reflect"), np.pad(has_data, missing, "reflect")
        return Patch(
            np.ascontiguousarray(values.transpose(2, 0, 1)),
            None if used.all() else used,
            None if has_data.all() else has_data,
        )

    def _is_left_out(self, pixels: Pixels, used: Mask) -> bool:
        share = float(used.mean())
        if share == 0 or share < self.skip.min_foreground:
            return True
        if self.skip.blank is None:
            return False
        low, high = (edge.astype(np.float64) for edge in (pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))))
        return bool((high - low <= self.skip.blank).all())

    def _has_data(self, pixels: Pixels) -> Mask:
        nodata = self.image.nodata
        has_data: Mask = np.ones(pixels.shape[:2], dtype=bool)
        if nodata is not None and nodata == nodata:
            has_data &= (pixels != nodata).any(axis=-1)
        if pixels.dtype.kind == "f":
            has_data &= np.isfinite(pixels).all(axis=-1)
        return has_data

    def _foreground(self, mask: ImageReader, window: tuple[int, int, int, int]) -> Mask:
        """The mask, nearest pixel, at the image's size."""
        y, x, height, width = window
        rows = (np.arange(y, y + height) * mask.height) // self.size[0]
        cols = (np.arange(x, x + width) * mask.width) // self.size[1]
        read = mask.read(int(rows[0]), int(cols[0]), int(rows[-1] - rows[0]) + 1, int(cols[-1] - cols[0]) + 1)
        is_inside: Mask = np.any(read > 0, axis=-1)
        return is_inside[np.ix_(rows - rows[0], cols - cols[0])]


def _filled(pixels: Pixels, has_data: Mask) -> np.ndarray[Any, np.dtype[np.float32]]:
    values = pixels.astype(np.float32)
    values[~has_data] = 0
    return values
