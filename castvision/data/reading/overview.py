"""The whole image at low resolution: what a window of it is shown of its surroundings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from castvision.data.reading.pixels import holds_data

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.data.reading import ImageReader

_BAND_VALUES = 1 << 23
_FINENESS = 8
"""Means over blocks of pixels come first; this many of them or more make up a side of a pixel of the overview."""


def make_context(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The whole image at low resolution, smoothed so that small things become faint and do not flicker.

    Args:
        image: (B, C, height, width) float, normalised as the tiles are.
        size: (height, width) afterwards; the aspect ratio need not be kept.

    Returns:
        (B, C, *size).
    """
    from torch.nn import functional  # here, since most sources of windows have no overviews and need no torch

    return functional.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)


def read_overview(reader: ImageReader, size: tuple[int, int]) -> Tensor:
    """The whole image at low resolution, read by bands, from a coarse level of its pyramid if it has one.

    Args:
        reader: The image.
        size: (height, width) of the overview; the aspect ratio need not be kept.

    Returns:
        (C, *size) float32 in the image's own range, as `make_context` gives it; of images more than eight times as
        large, means over blocks of pixels stand for the pixels. What is nodata or not finite does not count: blocks
        without any data are filled with the mean of the others.
    """
    import torch
    from torch.nn import functional

    level = _coarsest(reader, size)
    height, width = reader.levels[level].height, reader.levels[level].width
    deep, wide = max(1, height // (_FINENESS * size[0])), max(1, width // (_FINENESS * size[1]))  # of a block
    rows = max(1, _BAND_VALUES // (width * reader.channels * deep)) * deep
    # NOTE: made before and not joined from parts: those would lie between large arrays and leave holes in memory
    total, share = torch.zeros(2, reader.channels, -(-height // deep), -(-width // wide))
    for y in range(0, height, rows):
        pixels = reader.read_masked(y, 0, min(rows, height - y), width, level)
        is_known = holds_data(pixels)
        values = np.where(is_known, np.ma.getdata(pixels), 0).astype(np.float32)
        for sums, plane in ((total, values), (share, is_known.astype(np.float32))):
            planes = torch.from_numpy(plane).permute(2, 0, 1)
            sums[:, y // deep : (y + rows) // deep] = functional.avg_pool2d(planes, (deep, wide), ceil_mode=True)
    mean = total.sum(dim=(1, 2), keepdim=True) / share.sum(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    return make_context(torch.where(share > 0, total / share, mean)[None], size)[0]


def _coarsest(reader: ImageReader, size: tuple[int, int]) -> int:
    """The last level of which the overview's pixels are still means over many."""
    fine = [
        index
        for index, level in enumerate(reader.levels)
        if level.height >= _FINENESS * size[0] and level.width >= _FINENESS * size[1]
    ]
    return fine[-1] if fine else 0
