"""Images held in memory: arrays, and the formats that can only be decoded as a whole (PNG, JPEG, WebP, BMP, GIF)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from castvision.data.reading.decoding import Pixels
from castvision.data.reading.images import read_image
from castvision.data.reading.reader import Facts, ImageReader, Options, make_levels

if TYPE_CHECKING:
    from pathlib import Path


class ArrayReader(ImageReader):
    """Windows of an array; see `open_array`."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels
        super().__init__(None, Options())

    def _connect(self) -> Facts:
        return _facts(self._pixels)

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        return np.array(self._pixels[y : y + height, x : x + width])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._pixels,)


class WholeImageReader(ImageReader):
    """Windows of a file that is decoded when it is opened; at most `reading.decoding.MAX_PIXELS` pixels."""

    path: Path

    def _connect(self) -> Facts:
        options = self.options
        palette: Literal["colour", "index"] = "index" if options.is_mask else "colour"
        self._pixels = read_image(self.path, alpha=options.alpha, page=options.page, palette=palette)
        return _facts(self._pixels)

    def _disconnect(self) -> None:
        self._pixels = np.empty((0, 0, 0))

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        return np.array(self._pixels[y : y + height, x : x + width])


def open_array(array: Pixels) -> ImageReader:
    """A reader of pixels in memory (or of a memory-mapped file: ``numpy.load(path, mmap_mode="r")``).

    Args:
        array: (height, width) or (height, width, channels), real numbers.

    Returns:
        The reader; the array is not copied.

    Raises:
        ValueError: Empty, or of another number of dimensions.
        TypeError: No array of real numbers.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"expected an array of real numbers (height, width[, channels]), got {kind}")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"expected a non-empty array (height, width[, channels]), got {array.shape=}")
    return ArrayReader(array if array.ndim == 3 else array[..., None])


def _facts(pixels: Pixels) -> Facts:
    height, width, channels = pixels.shape
    return Facts(make_levels([(height, width)]), channels, pixels.dtype)
