"""Tiles as they are read: which pixels hold something, what surrounds them, and where in the image they lie."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading import ImageReader, open_array, open_image
from castvision.data.reading.agreement import check_area
from castvision.data.reading.pixels import fill_missing, holds_data, is_empty, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from castvision.data.transforms.symmetries import Symmetry
    from castvision.inference.tiling import Tile

Pixels = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Skip:
    """What is left out and stays nodata. Pixels without data (see `is_empty`) are left out in any case.

    Attributes:
        mask: Where to work: pixels > 0 in any channel; of any size, laid over the whole image, in whose proportions
            and, where both say where they lie on the ground, in whose place it must be.
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
class TileInput:
    """A tile as it was read.

    Attributes:
        pixels: (C, tile height, tile width) float32; what holds no data is as the source says. None = not to be run.
        valid: (rows used, columns used) bool; None = every pixel.
        has_data: (tile height, tile width) bool; None = every pixel.
    """

    pixels: np.ndarray[Any, np.dtype[np.float32]] | None
    valid: Mask | None
    has_data: Mask | None = None


def as_reader(image: ImageReader | Pixels | str | os.PathLike[str]) -> tuple[ImageReader, bool]:
    """A reader, and whether it was opened here and is ours to close.

    Raises:
        TypeError: None of these.
    """
    if isinstance(image, ImageReader):
        return image, False
    if isinstance(image, np.ndarray):
        return open_array(image), True
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(
            "expected a path, an open reader, or an array of numpy (height, width, channels), got a "
            f"{type(image).__name__}; give np.asarray(image), of tensors with the channels last"
        )
    return open_image(image), True


class TileSource:
    """Reads a grid's tiles from one level of an image.

    Args:
        image: The image.
        level: Of its pyramid.
        skip: What to leave out.
        missing: What values without data become.
        reflects: Whether an image shorter than a tile is continued by reflection; if not, there is no data beyond it,
            as in the padding of training.

    Raises:
        ValueError: No such level, or a mask of other proportions or of another place.
    """

    def __init__(
        self, image: ImageReader, level: int, skip: Skip, missing: float = 0.0, *, reflects: bool = True
    ) -> None:
        if not 0 <= level < len(image.levels):
            raise ValueError(f"expected a level in 0..{len(image.levels) - 1} of {image.name!r}, got {level=}")
        self.image, self.level, self.skip, self.missing, self.reflects = image, level, skip, missing, reflects
        self.size = image.levels[level].height, image.levels[level].width
        self._mask = open_array(skip.mask) if isinstance(skip.mask, np.ndarray) else skip.mask
        if self._mask is not None:
            check_area(self._mask, image)

    def state(self) -> dict[str, Any]:
        """What a run that is resumed must find as it was: files by their time, masks in memory by what they hold."""
        mask = self.skip.mask
        if isinstance(mask, np.ndarray):
            held: Any = hashlib.sha256(np.ascontiguousarray(mask).data).hexdigest()
        else:
            held = None if mask is None else [mask.name, _changed(mask.name)]
        told = {"image": self.image.name, "changed": _changed(self.image.name), "level": self.level, "mask": held}
        return {**told, "min_foreground": self.skip.min_foreground, "blank": self.skip.blank}

    def read(self, tile: Tile) -> TileInput:
        """Read one tile, continued where the image is shorter than it."""
        y, x, start = tile.y, tile.x, (tile.y.start, tile.x.start)
        height, width = min(y.stop, self.size[0]) - y.start, min(x.stop, self.size[1]) - x.start
        pixels = self.image.read_masked(y.start, x.start, height, width, self.level)  # (height, width, C)
        has_data = ~is_empty(pixels)
        valid = has_data if self._mask is None else has_data & self._foreground(self._mask, (*start, height, width))
        used = valid[y.low - y.start : y.high - y.start, x.low - x.start : x.high - x.start]
        if self._is_left_out(pixels, used):
            return TileInput(None, used)
        with np.errstate(over="ignore"):  # a nodata value of float64 may lie beyond float32
            values = np.ma.getdata(pixels).astype(np.float32)
        values[~holds_data(pixels)] = self.missing
        missing = (0, y.stop - y.start - height), (0, x.stop - x.start - width)
        if missing != ((0, 0), (0, 0)) and self.reflects:
            values, has_data = np.pad(values, (*missing, (0, 0)), mode="reflect"), np.pad(has_data, missing, "reflect")
        elif missing != ((0, 0), (0, 0)):
            values = np.pad(values, (*missing, (0, 0)), constant_values=self.missing)
            has_data = np.pad(has_data, missing)
        return TileInput(
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
        values = pixels.astype(np.float64)
        low, high = fill_missing(values, np.inf).min(axis=(0, 1)), fill_missing(values, -np.inf).max(axis=(0, 1))
        return bool((high - low <= self.skip.blank).all())

    def _foreground(self, mask: ImageReader, window: tuple[int, int, int, int]) -> Mask:
        """The mask, nearest pixel, at the image's size; where it holds no data it is not > 0."""
        y, x, height, width = window
        rows = nearest(y, y + height, mask.height, self.size[0])
        cols = nearest(x, x + width, mask.width, self.size[1])
        read = mask.read_masked(int(rows[0]), int(cols[0]), int(rows[-1] - rows[0]) + 1, int(cols[-1] - cols[0]) + 1)
        is_inside: Mask = np.any((np.ma.getdata(read) > 0) & holds_data(read), axis=-1)
        return is_inside[np.ix_(rows - rows[0], cols - cols[0])]


def _changed(name: str) -> int | None:
    """When a file was changed last, in ns; None where there is none of that name."""
    try:
        return os.stat(name).st_mtime_ns
    except (OSError, ValueError):
        return None


class Informed:
    """Calls a predictor with what it wants to know beside every batch of tiles, as keywords.

    Args:
        predictor: Called with (B, C, height, width) and, as wanted, ``context=`` (1, C, *context size), ``window=``
            (B, 4): top, left, height and width of each tile as fractions of the image, and ``pixel_mask=``
            (B, height, width) bool, where some pixel of the batch has no data.
        source: Reads the image.
        put: Brings arrays to where the tiles are.
        context_size: (height, width) of the overview; None = no context and no windows.
        mask_nodata: Whether it takes a ``pixel_mask``.
    """

    def __init__(
        self,
        predictor: Callable[..., Tensor],
        source: TileSource,
        put: Callable[[Pixels], Tensor],
        *,
        context_size: tuple[int, int] | None = None,
        mask_nodata: bool = False,
    ) -> None:
        self.predictor, self.size, self.mask_nodata, self.put = predictor, source.size, mask_nodata, put
        self.gives: int = getattr(predictor, "gives", 1)  # channels, where every tile is left out
        self.context: Tensor | None = None
        if context_size is not None:
            from castvision.data.reading.overview import read_overview  # by torch

            self.context = put(read_overview(source.image, context_size)[None].numpy())

    def __call__(self, batch: Tensor, placed: Sequence[tuple[Tile, TileInput]], view: Symmetry) -> Tensor:
        """(B, classes, height, width) of the tiles of a batch, which were mirrored and turned as ``view`` says."""
        told: dict[str, Tensor] = {}
        if self.context is not None:
            window = self.put(np.array([self._window(tile) for tile, _ in placed], dtype=np.float32))
            told |= {"context": view.of(self.context), "window": view.of_window(window)}
        masks = [taken.has_data for _, taken in placed]
        if self.mask_nodata and any(mask is not None for mask in masks):
            told["pixel_mask"] = view.of(self.put(_stacked(masks)))
        return self.predictor(batch, **told)

    def _window(self, tile: Tile) -> tuple[float, float, float, float]:
        height, width = self.size
        return (
            tile.y.start / height,
            tile.x.start / width,
            (tile.y.stop - tile.y.start) / height,
            (tile.x.stop - tile.x.start) / width,
        )


def _stacked(masks: Sequence[Mask | None]) -> Mask:
    """(B, height, width) bool; None = True everywhere; one at least is not None."""
    size = next(mask.shape for mask in masks if mask is not None)
    return np.stack([np.ones(size, dtype=bool) if mask is None else mask for mask in masks])
