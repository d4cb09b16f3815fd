"""What a classifier of folders of images is shown: 8-bit RGB, resized and cropped as timm does when it evaluates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from timm.data import create_transform

from castvision.data.reading.pixels import match_channels, to_unit_range

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from castvision.data.reading.pixels import Pixels


def rgb_picture(pixels: Pixels) -> Image.Image:
    """Pixels as 8-bit RGB; deeper channels are scaled and rounded, not cut.

    Args:
        pixels: (height, width, channels), any numeric dtype.

    Raises:
        ValueError: Neither grey nor RGB.
    """
    pixels = match_channels(pixels, 3)
    if pixels.dtype != np.uint8:
        pixels = (to_unit_range(pixels) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def cropping_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """From a picture to (3, *size) float32, normalised: the middle of the picture, its shorter side a little larger."""
    made: Callable[[Image.Image], Tensor] = create_transform(
        (3, *size), is_training=False, mean=tuple(mean), std=tuple(std)
    )
    return made
