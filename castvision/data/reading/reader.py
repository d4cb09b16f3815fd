"""What every reader of images offers, whatever the file."""

from __future__ import annotations

import operator
import os
import struct
import zlib
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from PIL import Image

from castvision.data.reading.pixels import holds_data, mark_missing, nearest
from castvision.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.reading.georeference import Georeference
    from castvision.data.reading.pixels import Mask, Pixels

_NEAREST_BAND = 1 << 24  # pixels of a mask that are read at once
Alpha = Literal["white", "drop", "keep"]
_CORNER = 256

# What decoders raise when they are given damaged bytes (a fuzzer found most of these).
DECODER_ERRORS = (
    OSError,
    ValueError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    TypeError,
    Warning,  # where warnings are errors
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)


class UnreadableImageError(ValueError):
    """An image file that cannot be read; the message names it."""


def check_file(path: str | os.PathLike[str]) -> Path:
    """A file with something in it.

    Raises:
        FileNotFoundError: No such file.
        UnreadableImageError: Not a file, or an empty one.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such image: {str(path)!r}; check the path")
    if not path.is_file():
        raise UnreadableImageError(f"expected an image file, got a folder or device: {str(path)!r}")
    if path.stat().st_size == 0:
        raise UnreadableImageError(
            f"cannot read image {str(path)!r}: the file is empty (0 bytes); copy or export it again"
        )
    return path


def check_alpha(alpha: str) -> None:
    """Refuse an unknown treatment of opacity.

    Raises:
        ValueError: None of `Alpha`.
    """
    if alpha not in ("white", "drop", "keep"):
        raise ValueError(f"expected alpha to be 'white', 'drop' or 'keep', got {alpha=}")


@dataclass(frozen=True)
class Level:
    """One resolution of an image.

    Attributes:
        height: Pixels.
        width: Pixels.
        downsample: Pixels of level 0 along one pixel of this level; 1.0 for level 0.
    """

    height: int
    width: int
    downsample: float


@dataclass(frozen=True)
class Options:
    """How a file is to be read; see `castvision.data.open_image`."""

    alpha: Alpha = "white"
    page: int | None = None
    cache_bytes: int = 64 << 20
    is_mask: bool = False
    bands: tuple[int, ...] | None = None


def alpha_for(in_chans: int | None) -> Alpha:
    """What becomes of an opacity channel where a model takes so many channels.

    2 and 4 keep it: many rasters of four bands declare their infrared so. Others see images as viewers show them.
    """
    return "keep" if in_chans in (2, 4) else "white"


def band_indices(bands: Sequence[int], channels: int, name: str) -> list[int]:
    """Positions of the bands chosen.

    Args:
        bands: Numbers from 1 on, as GDAL counts, in the order they are wanted.
        channels: Of the file, opacity among them.
        name: Of the image, for the message.

    Raises:
        ValueError: None, or one that the file has not.
    """
    if not bands or not all(1 <= band <= channels for band in bands):
        raise ValueError(f"expected bands within 1..{channels} of {name!r}, got {list(bands)}; choose among those")
    return [band - 1 for band in bands]


class ImageReader(ABC):
    """Windows of one image, read when they are asked for. A context manager; pickles, and opens its file anew.

    Attributes:
        path: The file; None for pixels in memory.
        options: How it is read.
        levels: From full size down; at least one.
        channels: Of every level.
        dtype: Of the pixels: the file's, in the machine's byte order.
        mpp: Microns per pixel of level 0 along a row, or ground units per pixel of a georeferenced image; None if not
            stated, or if the ground units are degrees.
        mpp_y: Likewise down a column; None = as ``mpp``.
        nodata: The value of pixels that were never measured, may be NaN, as ``read`` gives it; None if not stated, or
            if it is another for each channel or a colour. Which pixels are missing, for whatever reason, is told by
            ``read_masked``.
        has_gaps: Whether the file can say that pixels are missing: by nodata, opacity or a mask. NaN says so itself.
        georeference: Where the pixels of level 0 lie on the ground; None if not stated.
        channel_names: One for each channel; None if not stated.
    """

    levels: tuple[Level, ...]
    channels: int
    dtype: np.dtype[Any]
    mpp: float | None = None
    mpp_y: float | None = None
    nodata: float | None = None
    _marks_missing = False  # whether `_read` looks at nodata itself
    georeference: Georeference | None = None
    channel_names: tuple[str, ...] | None = None
    _chosen: list[int] | None = None

    def __init__(self, path: Path | None, options: Options) -> None:
        self.path = path
        self.options = options
        self._is_open = True
        self._files = ExitStack()
        self._process = os.getpid()
        self._beside: ImageReader | None = None
        try:
            self._open()
        except DECODER_ERRORS as error:
            self.close()
            is_missing = isinstance(error, FileNotFoundError) and path is not None and not path.exists()
            if is_missing or isinstance(error, UnreadableImageError):  # these name the file themselves
                raise
            raise ValueError(f"cannot read image {self.name!r}: {one_line(error)}") from error
        if options.is_mask:
            try:
                self._become_mask()
            except ValueError:
                self.close()
                raise

    def _become_mask(self) -> None:
        """One channel of whole numbers, also where the file repeats them (grey saved as RGB); colours are refused.

        Colours that do not show in the upper left corner are refused when they are read.
        """
        if self.dtype.kind not in "bui":
            found = f"{self.channels} channel(s) of {self.dtype}"
            raise ValueError(
                f"expected a mask with one whole number a pixel in {self.name!r}, got {found}; "
                "save it with whole numbers"
            )
        if self.channels > 1:
            self.read(0, 0, min(_CORNER, self.height), min(_CORNER, self.width))
            self.channels = 1

    def _one_number(self, pixels: Pixels) -> Pixels:
        """(height, width, 1) of a mask's (height, width, channels), which must be alike."""
        if (pixels != pixels[..., :1]).any():
            colours = np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)[:8]
            found = ", ".join(str(tuple(colour)) for colour in colours.tolist())
            raise ValueError(
                f"expected a mask with one whole number a pixel in {self.name!r}, got {pixels.shape[-1]} channel(s) of "
                f"{self.dtype} with colours {found}; give a label map from colours to classes, such as label_map: "
                "{'#ff0000': 1}"
            )
        return pixels[..., :1]

    def _open(self) -> None:
        """Open the file, and of its channels know only the bands that are asked for."""
        self._connect()
        if self.options.bands is None:
            return
        self._chosen = band_indices(self.options.bands, self.channels, self.name)
        self.channels = len(self._chosen)
        if self.channel_names is not None:
            self.channel_names = tuple(self.channel_names[index] for index in self._chosen)

    @abstractmethod
    def _connect(self) -> None:
        """Open the file, put it on ``_files``, and set the attributes from ``levels`` on by what it says of itself.

        Also called in a process that was forked off, where file positions must not be shared.
        """

    @abstractmethod
    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        """A window that lies inside; a masked array where the reader knows that values are missing."""

    @property
    def name(self) -> str:
        """The path, or a stand-in for pixels in memory."""
        return "array" if self.path is None else str(self.path)

    @property
    def height(self) -> int:
        """Of level 0, in pixels."""
        return self.levels[0].height

    @property
    def width(self) -> int:
        """Of level 0, in pixels."""
        return self.levels[0].width

    @property
    def pixel_area(self) -> float | None:
        """Of a pixel of level 0, whatever its shape; None if not stated. See ``area_unit``."""
        if self.georeference is not None:
            return self.georeference.pixel_area
        return None if self.mpp is None else self.mpp * (self.mpp_y or self.mpp)

    @property
    def area_unit(self) -> str | None:
        """Of ``pixel_area``."""
        if self.georeference is not None:
            return f"square {self.georeference.unit}"
        return None if self.mpp is None else "square microns"

    @property
    def mpp_unit(self) -> str | None:
        """Of ``mpp``: "microns", or what the ground is measured in (`Georeference.unit`); None where it is."""
        if self.mpp is None:
            return None
        return "microns" if self.georeference is None else self.georeference.unit

    def pixels_across(self, level: int) -> tuple[float, float]:
        """How many pixels of level 0 one of a level's spans, down and across: both cover the same ground."""
        size = self.levels[level]
        return self.height / size.height, self.width / size.width

    @property
    def has_gaps(self) -> bool:
        """Whether the file can say that pixels are missing."""
        return self.nodata is not None or self._mask_beside() is not None

    def read_masked(self, y: int, x: int, height: int, width: int, level: int = 0) -> Pixels:
        """The same as ``read``, a numpy masked array where values were never measured.

        That is what the file says: its nodata (of a mask of labels, whose nodata is a label, it is left to
        `castvision.data.reading.labels`), opacity 0 where it is composed over white, its mask inside it or
        beside it (``.msk``). Which of the other values are no data, because they are not finite, says
        `castvision.data.reading.pixels.holds_data`.
        """
        pixels = self._window(y, x, height, width, level)
        if self.nodata is not None and not self._marks_missing and not self.options.is_mask:
            pixels = mark_missing(pixels, holds_data(pixels, self.nodata))
        mask = self._mask_beside()
        if mask is None:
            return pixels
        is_inside: Mask = read_nearest(mask, self.levels[level], (y, x, height, width)) > 0
        if self._chosen is not None and is_inside.shape[-1] > max(self._chosen):
            is_inside = is_inside[..., self._chosen]
        if is_inside.shape[-1] not in (1, pixels.shape[-1]):
            is_inside = np.any(is_inside, axis=-1, keepdims=True)
        return mark_missing(np.ma.getdata(pixels), ~np.ma.getmaskarray(pixels) & is_inside)

    def _mask_beside(self) -> ImageReader | None:
        """GDAL's mask in a file of its own, ``NAME.msk``."""
        if self.path is None or self.path.suffix == ".msk" or self._beside is not None:
            return self._beside
        path = self.path.with_name(f"{self.path.name}.msk")
        if not path.is_file():
            return None
        from castvision.data.reading.opening import open_image  # which imports this file

        mask = open_image(path, alpha="keep")
        if (mask.height, mask.width) != (self.height, self.width):
            mask.close()
            raise ValueError(
                f"expected a mask of the image's size {self.height} × {self.width}, got {mask.height} × {mask.width} "
                f"in {str(path)!r}; write it again, or move it away"
            )
        self._beside = mask
        return mask

    def read(self, y: int, x: int, height: int, width: int, level: int = 0) -> Pixels:
        """Read a window.

        Args:
            y: First row, in pixels of the level.
            x: First column, in pixels of the level.
            height: Rows, >= 1.
            width: Columns, >= 1.
            level: Which of ``levels``.

        Returns:
            (height, width, channels), the file's dtype; a fresh, writable array.

        Raises:
            ValueError: No such level, a window that is not wholly inside, a closed reader, or damaged data.
        """
        return np.ma.getdata(self._window(y, x, height, width, level))

    def _window(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        """A window, after all checks."""
        y, x, height, width = (operator.index(number) for number in (y, x, height, width))
        if not 0 <= level < len(self.levels):
            raise ValueError(f"expected level in 0..{len(self.levels) - 1} of {self.name!r}, got {level=}")
        whole = self.levels[level]
        if min(height, width) < 1 or min(y, x) < 0 or y + height > whole.height or x + width > whole.width:
            raise ValueError(
                f"expected a window inside the {whole.height} × {whole.width} pixels of level {level} of "
                f"{self.name!r}, got {y=}, {x=}, {height=}, {width=}"
            )
        if not self._is_open:
            raise ValueError(f"the reader of {self.name!r} is closed; open the image again")
        if os.getpid() != self._process:
            self._process = os.getpid()
            self._open()
            if self.options.is_mask:
                self._become_mask()
        try:
            pixels = self._read(y, x, height, width, level)
            if self._chosen is not None:
                pixels = pixels[..., self._chosen].copy(order="C")
        except DECODER_ERRORS as error:
            raise ValueError(
                f"cannot read image {self.name!r} at {y=}, {x=}, {height=}, {width=}, {level=}: {one_line(error)}"
            ) from error
        return self._one_number(pixels) if self.options.is_mask and pixels.shape[-1] > 1 else pixels

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._is_open:
            self._is_open = False
            self._files.close()
            if self._beside is not None:
                self._beside.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_is_open"):
            self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.options)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{level.height} × {level.width}" for level in self.levels)
        return f"{type(self).__name__}({self.name!r}: {sizes}; {self.channels} channel(s) of {self.dtype})"


def read_nearest(mask: ImageReader, level: Level, window: tuple[int, int, int, int]) -> Pixels:
    """A window of an image's level from a mask of the whole image, nearest pixel.

    Args:
        mask: Of the size of the image's level 0; the coarsest of its levels that is fine enough is read.
        level: Of the image.
        window: (y, x, height, width), in pixels of the level.

    Returns:
        (height, width, channels of the mask).
    """
    enough = [index for index, own in enumerate(mask.levels) if own.height >= level.height and own.width >= level.width]
    own = mask.levels[enough[-1]]
    y, x, height, width = window
    rows, columns = nearest(y, y + height, own.height, level.height), nearest(x, x + width, own.width, level.width)
    left, across = int(columns[0]), int(columns[-1] - columns[0]) + 1
    out = np.empty((height, width, mask.channels), mask.dtype)
    step = max(1, _NEAREST_BAND * height // (across * int(rows[-1] - rows[0] + 1)))
    for start in range(0, height, step):
        some = rows[start : start + step]
        band = mask.read(int(some[0]), left, int(some[-1] - some[0]) + 1, across, enough[-1])
        out[start : start + step] = band[np.ix_(some - some[0], columns - left)]
    return out


def make_levels(sizes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels from (height, width), full size first; the longer side, which is rounded least, gives the factor.

    Raises:
        ValueError: A level without a pixel.
    """
    for number, size in enumerate(sizes):
        if min(size) < 1:
            raise ValueError(f"expected at least one pixel, got {size[0]} x {size[1]} at level {number}")
    longest = [max(size) for size in sizes]
    return tuple(Level(*size, longest[0] / length) for size, length in zip(sizes, longest, strict=True))


def missing_package(path: Path, package: str) -> ImportError:
    """The error for a file that needs an extra."""
    return ImportError(f"reading {str(path)!r} needs {package}: pip install 'castvision[large-images]'")
