"""Augmentation of tensors on the device they are on: channels in any units, and whole batches with masks by kornia."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from castvision.ignored import IGNORED

_TINY = 1e-30


def change_channels(
    image: Tensor, brightness: Tensor, contrast: Tensor, gamma: Tensor, is_real: Tensor | None = None
) -> Tensor:
    """Apply given changes to each channel, relative to its own range.

    With low, high, mean and std of a channel of one image: first gamma bends the values between low and high,
    ``low + (high - low) · ((x - low) / (high - low))^gamma``; then contrast stretches them about their mean and
    brightness shifts them by so many std. So the change does not depend on the units: it commutes with
    ``x → a·x + b`` (a > 0), in particular with normalisation, and nothing is clipped.

    Args:
        image: (..., C, height, width), float.
        brightness: Shift in units of the channel's std, of a shape that broadcasts with (..., C, 1, 1); 0 = none.
        contrast: Factor > 0; 1 = none.
        gamma: Exponent > 0; 1 = none.
        is_real: (..., height, width) bool, True where there is an image: what lies elsewhere, such as padding, is in no
            range, mean or std, and stays as it is. None = everywhere.

    Returns:
        The same shape and dtype; a constant channel stays as it is.
    """
    if is_real is None:
        is_real = image.new_ones((), dtype=torch.bool).expand(image[..., 0, :, :].shape)
    real = is_real.unsqueeze(-3)  # (..., 1, height, width)
    count = real.sum((-2, -1), keepdim=True).clamp(min=1)
    values = image.float()
    low = values.masked_fill(~real, torch.inf).amin((-2, -1), keepdim=True)
    high = values.masked_fill(~real, -torch.inf).amax((-2, -1), keepdim=True)
    span = high - low
    unit = (values - low) / torch.where(span > 0, span, 1)
    # NOTE: exp(gamma · log) takes less than half the time of a power with tensors on CPUs.
    bent = low + span * (unit.clamp_min(_TINY).log() * gamma).exp()
    mean = bent.masked_fill(~real, 0).sum((-2, -1), keepdim=True) / count
    centred = bent - mean
    std = (centred.masked_fill(~real, 0).square().sum((-2, -1), keepdim=True) / count).sqrt()
    return torch.where(real, mean + contrast * centred + brightness * std, values).to(image.dtype)


class ChannelJitter(nn.Module):
    """Change brightness, contrast and gamma at random; see `change_channels` for what they mean.

    Args:
        brightness: Largest shift, in standard deviations of the channel, >= 0.
        contrast: Factors are drawn from 1 / (1 + contrast) .. 1 + contrast, as often above 1 as below.
        gamma: The same for exponents.
        per_channel: Draw for each channel of its own (sensors that drift apart) or once for all of an image.

    Raises:
        ValueError: A negative strength.
    """

    def __init__(
        self, brightness: float = 0.2, contrast: float = 0.2, gamma: float = 0.2, per_channel: bool = False
    ) -> None:
        super().__init__()
        if min(brightness, contrast, gamma) < 0:
            raise ValueError(f"expected strengths >= 0, got {brightness=}, {contrast=}, {gamma=}")
        self.brightness, self.contrast, self.gamma, self.per_channel = brightness, contrast, gamma, per_channel

    def forward(self, image: Tensor, is_real: Tensor | None = None) -> Tensor:
        """Jitter one image or each image of a batch on its own.

        Args:
            image: (C, height, width) or (B, C, height, width), float, in any units.
            is_real: (height, width) or (B, height, width) bool, see `change_channels`.

        Returns:
            The same shape, dtype and device. Randomness comes from torch's global generator.
        """
        shape = (*image.shape[:-3], image.shape[-3] if self.per_channel else 1, 1, 1)
        shift, stretch, bend = (2 * torch.rand(3, *shape, device=image.device) - 1).unbind()  # -1..1
        factors = (1 + self.contrast) ** stretch, (1 + self.gamma) ** bend
        return change_channels(image, self.brightness * shift, *factors, is_real)


class BatchAugmentation(nn.Module):
    """Mirror images, quarter turns, one affine map and a change of channels; each image draws its own.

    Whatever comes from outside the image is 0 in it (the mean, if it is normalised), 255 in the mask and no real pixel.

    Args:
        hflip: Probability of left and right exchanged.
        vflip: Probability of top and bottom exchanged.
        rot90: Probability of a turn by 90°, 180° or 270°; square images only.
        degrees: Largest rotation either way.
        translate: Largest shift, as a share of the side.
        scale: Smallest and largest factor on the size.
        color: Strength of `ChannelJitter`; 0 = none.

    Attributes:
        brings_outside: Whether the geometry can show what lies outside an image.

    Raises:
        ValueError: A probability outside 0..1, a negative strength, or no range of factors.
    """

    def __init__(  # the signature is the configuration
        self,
        hflip: float = 0.5,
        vflip: float = 0.0,
        rot90: float = 0.0,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        color: float = 0.0,
    ) -> None:
        super().__init__()
        shares = {"hflip": hflip, "vflip": vflip, "rot90": rot90, "translate": translate}
        if not all(0 <= share <= 1 for share in shares.values()) or min(degrees, color) < 0:
            raise ValueError(f"expected shares in 0..1, degrees and color >= 0, got {shares}, {degrees=}, {color=}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"expected scale (smallest, largest) with 0 < smallest <= largest, got {scale}")
        self.turns_quarter = rot90 > 0
        self.brings_outside = degrees > 0 or translate > 0 or scale[0] < 1
        self.geometry = _geometry(hflip, vflip, rot90, degrees, (translate, scale))
        self.jitter = ChannelJitter(color, color, color) if color else None

    def forward(
        self, image: Tensor, mask: Tensor | None = None, pixel_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Augment a batch.

        Args:
            image: (B, C, height, width), float.
            mask: (B, height, width) int64 labels, 255 = ignored; None if there are none.
            pixel_mask: (B, height, width) bool, True where a pixel of an image with labels is real; None = everywhere.

        Returns:
            The same shapes and dtypes; a ``pixel_mask`` also where all was real, if the geometry ``brings_outside``.

        Raises:
            ValueError: Quarter turns of images that are not square.
        """
        if self.turns_quarter and image.shape[-2] != image.shape[-1]:
            raise ValueError(f"expected square images for rot90 > 0, got {tuple(image.shape[-2:])}; set rot90 to 0")
        if self.geometry is None:
            return self._changed(image, pixel_mask), mask, pixel_mask
        is_real = torch.ones_like(image[:, 0]) if pixel_mask is None else pixel_mask.to(image.dtype)
        # NOTE: kornia fills masks with 0, so labels are shifted for it: 0 is then what is ignored.
        shifted = torch.zeros_like(is_real) if mask is None else (mask - IGNORED).to(image.dtype)
        image, layers = self.geometry(image, torch.stack([shifted, is_real], dim=1), data_keys=["image", "mask"])
        shifted, is_real = layers[:, 0].round(), layers[:, 1] > 0.5
        image = self._changed(image, is_real).masked_fill(~is_real[:, None], 0)
        if mask is None:
            return image, None, None
        is_masked = pixel_mask is not None or self.brings_outside
        return image, shifted.to(mask.dtype) + IGNORED, is_real if is_masked else None

    def _changed(self, image: Tensor, is_real: Tensor | None) -> Tensor:
        return image if self.jitter is None else self.jitter(image, is_real)


def _geometry(
    hflip: float, vflip: float, rot90: float, degrees: float, frame: tuple[float, tuple[float, float]]
) -> nn.Module | None:
    # NOTE: imported here: it takes seconds, and few need it.
    from kornia import augmentation as K
    from kornia.constants import DataKey

    translate, scale = frame
    steps: list[Any] = []
    if hflip:
        steps.append(K.RandomHorizontalFlip(p=hflip))
    if vflip:
        steps.append(K.RandomVerticalFlip(p=vflip))
    if rot90:
        steps.append(K.RandomRotation90(times=(1, 3), p=rot90))
    if degrees or translate or scale != (1.0, 1.0):
        steps.append(K.RandomAffine(degrees, (translate, translate), tuple(scale), p=1.0))
    if not steps:
        return None
    nearest = {DataKey.MASK: {"resample": "nearest", "align_corners": False}}
    return K.AugmentationSequential(*steps, data_keys=None, extra_args=nearest)
