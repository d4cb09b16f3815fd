"""Whole images brought to one size without torch, as `SampleTransform` does when nothing varies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from castvision.data.reading.pixels import fill_missing, is_empty
from castvision.data.transforms.model_input import to_float, to_input_array, unit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.reading.pixels import Mask, Pixels

_NATIVE = ("uint8", "uint16", "float32")


def fit(pixels: Pixels, size: int, mean: Sequence[float], std: Sequence[float]) -> tuple[Any, Mask]:
    """The longer side at ``size``, the shorter padded at the bottom or right; normalised.

    Args:
        pixels: (height, width, C), numeric.
        size: Height and width of the result.
        mean: Per channel or one for all, in the units of `to_float`.
        std: Per channel or one for all, > 0.

    Returns:
        (C, size, size) float32, 0 where there is no image, and where there is one, (size, size) bool.
    """
    is_hole: Pixels = is_empty(pixels).astype(np.uint8)
    pixels = fill_missing(pixels, np.asarray(mean) * unit(pixels.dtype))
    if pixels.dtype.name not in _NATIVE:
        pixels = to_float(pixels)
    height, width = fitted_size(pixels.shape[:2], size)
    if (height, width) != pixels.shape[:2]:
        how = cv2.INTER_AREA if size < max(pixels.shape[:2]) else cv2.INTER_LINEAR
        planes = [cv2.resize(np.ascontiguousarray(plane), (width, height), interpolation=how)
                  for plane in pixels.transpose(2, 0, 1)]  # fmt: skip
        pixels = np.stack(planes, axis=-1)
        is_hole = cv2.resize(is_hole, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    padded = np.zeros((size, size, pixels.shape[2]), pixels.dtype)
    padded[:height, :width] = pixels
    is_real = np.zeros((size, size), dtype=bool)
    is_real[:height, :width] = is_hole == 0
    image = to_input_array(padded, padded.shape[2], mean, std, keep_units=True)
    image[:, ~is_real] = 0
    return image, is_real


def fitted_size(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Height and width of an image (height, width) whose longer side is brought to ``size``."""
    height, width = (max(1, round(side * (size / max(shape)))) for side in shape)
    return height, width


def resized_linearly(planes: Any, size: tuple[int, int]) -> Any:
    """(C, height, width) float32 at another size, as torch's bilinear interpolation without antialiasing."""
    if planes.shape[-2:] == size:
        return planes
    return np.stack([cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR) for plane in planes])
