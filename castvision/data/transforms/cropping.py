"""The middle of a picture without torch: what timm's transform of evaluation makes of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from castvision.data.reading.pixels import fill_missing, holds_data, mark_missing, match_channels, to_unit_range
from castvision.data.transforms.model_input import resized_planes

if TYPE_CHECKING:
    from castvision.data.input_format import InputFormat
    from castvision.data.reading.pixels import Pixels

KEPT_SHARE = 0.875
"""Of the shorter side that is kept; timm's default."""


def rgb_pixels(pixels: Pixels) -> Pixels:
    """Pixels as RGB, of 8 bits as they are, deeper ones as float32 0..1; what holds no data is marked.

    Args:
        pixels: (height, width, channels), any numeric dtype.

    Returns:
        (height, width, 3), uint8 or float32; see `castvision.data.reading.pixels.mark_missing`.

    Raises:
        ValueError: Neither grey nor RGB.
    """
    plain, is_known = match_channels(np.ma.getdata(pixels), 3), match_channels(holds_data(pixels), 3)
    if plain.dtype != np.uint8:
        plain = to_unit_range(mark_missing(plain, is_known))
    return mark_missing(plain, is_known)


def crop(pixels: Pixels, seen: InputFormat) -> Any:
    """Pixels of a whole image to a classifier's input.

    Args:
        pixels: (height, width, channels), any numeric dtype.
        seen: What the model was trained on.

    Returns:
        (3, *seen.img_size) float32, normalised.

    Raises:
        ValueError: Neither grey nor RGB.
    """
    marked = rgb_pixels(pixels)
    size = _size_before((marked.shape[0], marked.shape[1]), seen.img_size)
    if marked.dtype == np.uint8:
        picture = Image.fromarray(np.ascontiguousarray(fill_missing(marked, np.multiply(seen.mean, 255))))
        resized = picture.resize(size[::-1], Image.Resampling.BILINEAR)
        planes = np.asarray(resized, np.float32).transpose(2, 0, 1) / np.float32(255)
    else:
        planes = np.ascontiguousarray(fill_missing(marked, seen.mean).transpose(2, 0, 1))
        planes = resized_planes(planes, size, Image.Resampling.BILINEAR)
    top, left = (round((side - wanted) / 2.0) for side, wanted in zip(size, seen.img_size, strict=True))
    planes = planes[:, top : top + seen.img_size[0], left : left + seen.img_size[1]]
    mean, std = (np.asarray(values, np.float32)[:, None, None] for values in (seen.mean, seen.std))
    return (planes - mean) / std


def _size_before(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that an image is resized to before its middle is taken."""
    goal = [math.floor(side / KEPT_SHARE) for side in wanted]
    if goal[0] != goal[1]:
        ratio = min(side / to for side, to in zip(size, goal, strict=True))
        return round(size[0] / ratio), round(size[1] / ratio)
    height, width = size
    short = min(height, width)
    longer = int(goal[0] * max(height, width) / short)
    return (goal[0], longer) if height <= width else (longer, goal[0])
