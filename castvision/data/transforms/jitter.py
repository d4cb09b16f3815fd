"""Brightness, contrast and gamma of images with any number of channels, in any units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
