"""What a classifier of folders of images is shown: 8-bit RGB, resized and cropped as timm does when it evaluates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, create_transform

from castvision.data.reading.pixels import fill_missing, holds_data, mark_missing, match_channels, to_unit_range

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from castvision.data.reading.pixels import Pixels


def rgb_picture(pixels: Pixels) -> Image.Image:
    """Pixels as 8-bit RGB; deeper channels are scaled and rounded, not cut; what holds no data is ImageNet's mean.

    Args:
        pixels: (height, width, channels), any numeric dtype; see `castvision.data.reading.pixels.holds_data`.

    Raises:
        ValueError: Neither grey nor RGB.
    """
    plain, is_known = match_channels(np.ma.getdata(pixels), 3), match_channels(holds_data(pixels), 3)
    if plain.dtype != np.uint8:
        plain = (to_unit_range(mark_missing(plain, is_known)) * 255).round().astype(np.uint8)
    if not is_known.all():
        plain = fill_missing(mark_missing(plain, is_known), np.multiply(IMAGENET_DEFAULT_MEAN, 255))
    return Image.fromarray(np.ascontiguousarray(plain))


def cropping_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image], Tensor]:
    """From a picture to (3, *size) float32, normalised: the middle of the picture, its shorter side a little larger."""
    made: Callable[[Image.Image], Tensor] = create_transform(
        (3, *size), is_training=False, mean=tuple(mean), std=tuple(std)
    )
    return made
