"""What a classifier of folders of images is shown: RGB of the files' depth, cropped as timm does when it evaluates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, create_transform
from torch import Tensor

from castvision.data.reading.pixels import fill_missing, holds_data, mark_missing, match_channels, to_unit_range

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castvision.data.reading.pixels import Pixels


class ByDepth:
    """One transform for pictures of 8 bits, one for deeper ones, which come as tensors 0..1.

    Args:
        shallow: For pictures.
        deep: For (3, height, width) float32.
    """

    def __init__(self, shallow: Callable[[Image.Image], Any], deep: Callable[[Tensor], Any]) -> None:
        self.shallow, self.deep = shallow, deep

    def __call__(self, picture: Image.Image | Tensor) -> Any:
        """The model's input."""
        return self.deep(picture) if isinstance(picture, Tensor) else self.shallow(picture)


def rgb_picture(pixels: Pixels) -> Image.Image | Tensor:
    """Pixels as RGB: of 8 bits as timm's augmentations work on them, deeper ones without losing depth.

    Args:
        pixels: (height, width, channels), any numeric dtype.

    Returns:
        A picture of 8 bits, or (3, height, width) float32, 0..1. What holds no data is the mean: ImageNet's, and of
        deeper pixels the image's own.

    Raises:
        ValueError: Neither grey nor RGB.
    """
    rgb = as_rgb(pixels)
    if rgb.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(fill_missing(rgb, np.multiply(IMAGENET_DEFAULT_MEAN, 255))))
    mean = np.ma.filled(np.ma.mean(rgb.reshape(-1, 3), axis=0, dtype=np.float64), 0)
    return torch.from_numpy(np.ascontiguousarray(fill_missing(rgb, mean).transpose(2, 0, 1)))


def as_rgb(pixels: Pixels) -> Pixels:
    """Grey or RGB as RGB, 8 bits as they are, deeper ones as float32, 0..1.

    Args:
        pixels: (height, width, channels), any numeric dtype.

    Returns:
        (height, width, 3), a masked array where values hold no data.

    Raises:
        ValueError: Neither grey nor RGB.
    """
    is_known = match_channels(holds_data(pixels), 3)
    scaled = np.ma.getdata(pixels) if pixels.dtype == np.uint8 else to_unit_range(pixels)
    return mark_missing(match_channels(scaled, 3), is_known)


def cropping_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image | Tensor], Tensor]:
    """From a picture to (3, *size) float32, normalised: the middle of the picture, its shorter side a little larger."""
    made: Callable[[Image.Image | Tensor], Tensor] = create_transform(
        (3, *size), is_training=False, mean=tuple(mean), std=tuple(std)
    )
    return made
