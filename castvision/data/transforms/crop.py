"""What a classifier of folders of images is shown: RGB of the files' depth, cropped as timm does when it evaluates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, create_transform
from torch import Tensor

from castvision.data.reading.pixels import fill_missing
from castvision.data.transforms.cropping import rgb_pixels as rgb_pixels

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


def rgb_picture(pixels: Pixels, mean: Sequence[float] = IMAGENET_DEFAULT_MEAN) -> Image.Image | Tensor:
    """Pixels as RGB: of 8 bits as timm's augmentations work on them, deeper ones without losing depth.

    Args:
        pixels: See `rgb_pixels`.
        mean: What stands where no data is, 0..1, one for each channel.

    Returns:
        A picture of 8 bits, or (3, height, width) float32, 0..1.

    Raises:
        ValueError: Neither grey nor RGB.
    """
    marked = rgb_pixels(pixels)
    if marked.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(fill_missing(marked, np.multiply(mean, 255))))
    return torch.from_numpy(np.ascontiguousarray(fill_missing(marked, mean).transpose(2, 0, 1)))


def cropping_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Callable[[Image.Image | Tensor], Tensor]:
    """From a picture to (3, *size) float32, normalised: the middle of the picture, its shorter side a little larger."""
    made: Callable[[Image.Image | Tensor], Tensor] = create_transform(
        (3, *size), is_training=False, mean=tuple(mean), std=tuple(std)
    )
    return made
