"""Which pages of a TIFF make up an image and its smaller copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.decoding import channel_axes
from castvision.data.reading.segments import NotByWindows

if TYPE_CHECKING:
    import tifffile


@dataclass(frozen=True)
class Layer:
    """One resolution: pages of one size whose samples, one page after the other, are the channels.

    Attributes:
        pages: Of tifffile.
        size: (height, width), as stored.
        channels: Samples of all pages together.
        dtype: Of a sample.
    """

    pages: tuple[Any, ...]
    size: tuple[int, int]
    channels: int
    dtype: Any


def find_layers(tiff: tifffile.TiffFile, page: int | None) -> list[Layer]:
    """The image and its smaller copies, largest first.

    Copies are found as sub-images (OME, and what tifffile writes), as reduced pages (GDAL's overviews), as a slide
    maker's levels, and as plain pages each a whole factor smaller than the first.

    Args:
        tiff: An open file.
        page: Only this page; None = the file's first image.

    Raises:
        ValueError: No image, a stack without ``page``, no such page, or a layout that cannot be read by windows.
    """
    count = len(tiff.pages)
    if count == 0 or not tiff.series:
        raise ValueError("the TIFF holds no image (truncated?); copy or export it again")
    if page is not None:
        if not 0 <= page < count:
            raise ValueError(f"expected page in 0..{count - 1}, got {page=}")
        return [_page_layer(tiff.pages[page].aspage())]
    first, *others = tiff.series
    candidates = list(first.levels) if len(first.levels) > 1 else [first, *others]
    layers = [_series_layer(candidates[0], count)]
    for series in candidates[1:]:
        if _is_copy(series, layers):
            layers.append(_series_layer(series, count))
    return layers


def _page_layer(page: Any) -> Layer:
    planes, depth, height, width, samples = page.shaped
    if depth > 1:
        raise ValueError(f"expected one image, got a volume of depth {depth}; save one plane")
    return Layer((page,), (height, width), planes * samples, page.dtype)


def _series_layer(series: tifffile.TiffPageSeries, count: int) -> Layer:
    channel_axes(series.axes, series.shape, count)
    pages = tuple(series.pages)
    one = _page_layer(series.keyframe)
    channels = one.channels * len(pages)
    total = int(np.prod(series.shape, dtype=np.int64))
    if any(page is None for page in pages) or total != channels * one.size[0] * one.size[1]:
        raise NotByWindows(
            f"expected a page for each plane, got {len(pages)} page(s) for axes={series.axes}, shape={series.shape}; "
            "write the image again with one page a plane"
        )
    return Layer(pages, one.size, channels, one.dtype)


def _is_copy(series: tifffile.TiffPageSeries, layers: list[Layer]) -> bool:
    """Whether a series shows the first image in a smaller size than the last found."""
    page: Any = series.keyframe
    base, last = layers[0], layers[-1]
    if len(series.pages) != len(base.pages) or page.dtype != base.dtype or page.is_mask or 0 in page.shaped:
        return False
    if page.shaped[0] * page.shaped[4] * len(series.pages) != base.channels:
        return False
    height, width = page.imagelength, page.imagewidth
    if height > last.size[0] or width > last.size[1] or (height, width) == last.size:
        return False
    factor = max(base.size) / max(height, width)
    return factor >= 1.5 and all(
        abs(full / factor - small) < 1.5 for full, small in zip(base.size, (height, width), strict=True)
    )
