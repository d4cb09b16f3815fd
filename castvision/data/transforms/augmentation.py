"""From pixels in a file's dtype to a model's tensors, image and mask together: the one file that uses albumentations.

Geometry runs in the file's own dtype (8-bit, 16-bit or float, any number of channels: what is chosen here is what
albumentations 2.0.8 does correctly for all of them), colour on floats. Masks are resampled by nearest neighbour with
the images' alignment. Padding and pixels without data are 0 in the normalised image (its mean), 255 in the mask and
False in ``pixel_mask``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch
from torch import Tensor

from castvision.data.reading.pixels import fill_missing, is_empty
from castvision.data.transforms.batch_augmentation import ChannelJitter
from castvision.data.transforms.model_input import to_float, to_model_input, unit
from castvision.ignored import IGNORED

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask a server for its newest release
import albumentations as A

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.reading.pixels import Pixels

_COLOURED = (1, 3)
_NATIVE = ("uint8", "uint16", "float32")


@dataclass(frozen=True)
class Augmentation:
    """What varies while training.

    Args:
        scale: Smallest and largest factor on the size an image has in evaluation.
        hflip: Probability of a mirror image, left and right exchanged.
        vflip: Probability of a mirror image, top and bottom exchanged.
        rot90: Probability of a turn by 0°, 90°, 180° or 270°.
        color: Strength of the change of colours, 0 = none. Integer images of one or three channels: brightness,
            contrast and saturation by factors within 1 ± color, hue by a quarter of it. Others: `ChannelJitter`.

    Raises:
        ValueError: A probability outside 0..1, a negative strength, or no range of factors.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    hflip: float = 0.5
    vflip: float = 0.0
    rot90: float = 0.0
    color: float = 0.0

    def __post_init__(self) -> None:
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"expected scale (smallest, largest) with 0 < smallest <= largest, got {self.scale}")
        if not all(0 <= value <= 1 for value in (self.hflip, self.vflip, self.rot90)) or not 0 <= self.color <= 1:
            raise ValueError(f"expected hflip, vflip, rot90 and color in 0..1, got {self}")


class SampleTransform:
    """Resize, augment, normalise, pad.

    Args:
        img_size: Height and width of the result.
        mean: Per channel or one for all, in the units of `to_float`.
        std: Per channel or one for all, > 0.
        augmentation: What varies; None = evaluation, nothing does.
        fit: Bring the longer side to ``img_size`` and pad the shorter, so that all of the image is seen. If False,
            pixels keep their size: in training a random window of ``img_size`` is cut, in evaluation the image is not
            resized.

    Attributes:
        pads: Whether there can be padding; only the evaluation of images in their own size has none.

    Raises:
        ValueError: A size or std that is not positive.
    """

    def __init__(
        self,
        img_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augmentation: Augmentation | None = None,
        fit: bool = True,
    ) -> None:
        if img_size < 1 or min(std) <= 0:
            raise ValueError(f"expected img_size >= 1 and std > 0, got {img_size=}, {std=}")
        self.mean, self.std = tuple(mean), tuple(std)
        steps = (
            _evaluation_steps(img_size, fit) if augmentation is None else _training_steps(img_size, fit, augmentation)
        )
        self._geometry = A.Compose(steps)
        self.pads = fit or augmentation is not None
        self._is_random = augmentation is not None
        color = augmentation.color if augmentation else 0.0
        self._jitter = ChannelJitter(color, color, color) if color else None
        self._colour = _colour_step(color) if color else None

    def image(self, pixels: Pixels) -> Tensor:
        """Transform an image.

        Args:
            pixels: (height, width, C), numeric.

        Returns:
            (C, height', width') float32, normalised.
        """
        image: Tensor = self._run(pixels, [])[0]
        return image

    def pair(self, pixels: Pixels, mask: Pixels) -> tuple[Tensor, Tensor] | tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Transform an image and its mask alike.

        Args:
            pixels: (height, width, C), numeric; missing values are marked or NaN.
            mask: (height, width) uint8.

        Returns:
            (C, height', width') float32, normalised, and (height', width') int64; if it ``pads`` or
            pixels are missing, also the extra ``pixel_mask`` (height', width') bool, True where there is an image,
            ignored or not.
        """
        image, is_real, target = self._run(pixels, [mask])
        target[~is_real.numpy()] = IGNORED
        sample = image, torch.from_numpy(target.astype(np.int64))
        return (*sample, {"pixel_mask": is_real}) if self.pads or not is_real.all() else sample

    def with_objects(
        self, pixels: Pixels, mask: Pixels, objects: Pixels
    ) -> tuple[Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Transform an image, its mask of classes and its mask of objects alike.

        Args:
            pixels: See `pair`.
            mask: See `pair`.
            objects: (height, width) uint16, 0 = no object.

        Returns:
            Image, target and extras as `pair` gives them, the extra ``pixel_mask`` always, and the truth ``objects``:
            (height', width') int64, 0 where there is no image.
        """
        image, is_real, target, numbers = self._run(pixels, [mask, objects])
        target[~is_real.numpy()] = IGNORED
        numbers[~is_real.numpy()] = 0
        labels, owners = (torch.from_numpy(each.astype(np.int64)) for each in (target, numbers))
        return image, labels, {"pixel_mask": is_real}, {"objects": owners}

    def _run(self, pixels: Pixels, masks: list[Pixels]) -> tuple[Any, ...]:
        """The image, where it is one, and the masks."""
        padding = np.where(is_empty(pixels), IGNORED, 0).astype(np.uint8)  # becomes 255 in the padding, like every mask
        pixels = fill_missing(pixels, np.asarray(self.mean) * unit(pixels.dtype))
        if pixels.dtype.name not in _NATIVE:
            pixels = to_float(pixels)
        done = self._seeded(self._geometry, image=pixels, masks=[padding, *masks])
        padding, *masks = done["masks"]
        is_real = torch.from_numpy(padding != IGNORED)
        image = self._to_input(done["image"], is_real)
        image[:, ~is_real] = 0
        return image, is_real, *masks

    def _to_input(self, pixels: Pixels, is_real: Tensor) -> Tensor:
        """(C, height, width) float32, normalised and with other colours."""
        is_colour = pixels.dtype.kind == "u" and pixels.shape[-1] in _COLOURED
        if self._colour is not None and is_colour:
            values = pixels if pixels.dtype == np.uint8 else to_float(pixels)  # 8-bit colours change three times faster
            if not is_real.all():  # contrast is about an image's mean; all real, it may be the caller's array
                values[~is_real.numpy()] = np.asarray(self.mean) * unit(values.dtype)
            pixels = self._seeded(self._colour, image=np.ascontiguousarray(values))["image"]
        image = to_model_input(pixels, pixels.shape[-1], self.mean, self.std, keep_units=True)
        return self._jitter(image, is_real) if self._jitter is not None and not is_colour else image

    def _seeded(self, steps: A.Compose, **data: Any) -> dict[str, Any]:
        # NOTE: a Compose has a generator of its own, which loader processes would inherit as equal copies; torch's is
        # seeded differently in each of them, and by the run's seed.
        if self._is_random:
            steps.set_random_seed(int(torch.randint(1 << 31, ())))
        result: dict[str, Any] = steps(**data)
        return result


def _colour_step(strength: float) -> Any:
    factors = (1 - strength, 1 + strength)
    hue = (-strength / 4, strength / 4)
    return A.Compose([A.ColorJitter(brightness=factors, contrast=factors, saturation=factors, hue=hue, p=1)])


def _resized(resize: type[Any], **arguments: Any) -> Any:
    exact = {"mask_interpolation": cv2.INTER_NEAREST_EXACT, "area_for_downscale": "image"}
    return resize(interpolation=cv2.INTER_LINEAR, p=1, **exact, **arguments)


def _padded(size: int, position: str) -> Any:
    return A.PadIfNeeded(size, size, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=IGNORED, position=position, p=1)


def _evaluation_steps(size: int, fit: bool) -> list[Any]:
    return [_resized(A.LongestMaxSize, max_size=size), _padded(size, "top_left")] if fit else []


def _training_steps(size: int, fit: bool, how: Augmentation) -> list[Any]:
    low, high = how.scale
    if fit:
        sides = range(max(1, round(low * size)), max(1, round(high * size)) + 1)
        resize = _resized(A.LongestMaxSize, max_size=list(sides))
    else:
        resize = _resized(A.RandomScale, scale_limit=(low - 1, high - 1))
    turn = [A.HorizontalFlip(p=how.hflip), A.VerticalFlip(p=how.vflip), A.RandomRotate90(p=how.rot90)]
    return [resize, _padded(size, "random"), A.RandomCrop(size, size, p=1), *turn]
