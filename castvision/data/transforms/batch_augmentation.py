"""Augmentation of tensors on the device they are on: channels in any units, and whole batches with masks by kornia."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable


_TINY = 1e-30


def change_channels(image: Tensor, brightness: Tensor, contrast: Tensor, gamma: Tensor) -> Tensor:
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

    Returns:
        The same shape and dtype; a constant channel stays as it is.
    """
    values = image.float()
    low, high = values.amin((-2, -1), keepdim=True), values.amax((-2, -1), keepdim=True)
    span = high - low
    unit = (values - low) / torch.where(span > 0, span, 1)
    # NOTE: exp(gamma · log) takes less than half the time of a power with tensors on CPUs.
    bent = low + span * (unit.clamp_min(_TINY).log() * gamma).exp()
    mean = bent.mean((-2, -1), keepdim=True)
    centred = bent - mean
    std = centred.square().mean((-2, -1), keepdim=True).sqrt()
    return (mean + contrast * centred + brightness * std).to(image.dtype)


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

    def forward(self, image: Tensor) -> Tensor:
        """Jitter one image or each image of a batch on its own.

        Args:
            image: (C, height, width) or (B, C, height, width), float, in any units.

        Returns:
            The same shape, dtype and device. Randomness comes from torch's global generator.
        """
        shape = (*image.shape[:-3], image.shape[-3] if self.per_channel else 1, 1, 1)
        shift, stretch, bend = (2 * torch.rand(3, *shape, device=image.device) - 1).unbind()  # -1..1
        return change_channels(image, self.brightness * shift, (1 + self.contrast) ** stretch, (1 + self.gamma) ** bend)


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
        self.jitter: Callable[[Tensor], Tensor] = ChannelJitter(color, color, color) if color else nn.Identity()

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
            return self.jitter(image), mask, pixel_mask
        if mask is None:
            return self.jitter(self.geometry(image, data_keys=["image"])), None, None
        # NOTE: kornia fills masks with 0, so labels are shifted for it: 0 is then what is ignored.
        layers = torch.stack([mask - IGNORED, torch.ones_like(mask) if pixel_mask is None else pixel_mask], dim=1)
        image, layers = self.geometry(image, layers.to(image.dtype), data_keys=["image", "mask"])
        shifted, is_real = layers.round().to(mask.dtype).unbind(dim=1)
        is_masked = pixel_mask is not None or self.brings_outside
        return self.jitter(image), shifted + IGNORED, is_real.bool() if is_masked else None


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
