"""A decoder for thin structures: tokens unfolded to pixels, beside a full-resolution look at the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from castvision.heads.features import FeatureMaps, check_layout, resample

if TYPE_CHECKING:
    from collections.abc import Sequence


class UpsamplingHead(nn.Module):
    """Tokens say what, the image says where.

    The sum of two maps. Coarse: the logits of `LinearHead`, one linear map for each token, enlarged. Fine: each token
    is mapped to ``token_channels`` values for each of its pixels (a 1×1 convolution and PixelShuffle) and concatenated
    with a 3×3 convolution of the image at full resolution; a 3×3 and a 1×1 convolution follow. The first is what short
    runs learn by, the second finds the contours.

    Args:
        channels: Channels of each feature map.
        strides: Pixels per cell of each feature map.
        num_classes: Logits per pixel.
        in_chans: Channels of the image.
        token_channels: Values a token gives each of its pixels.
        pixel_channels: Width of the full-resolution convolutions.
        coarse: Add the coarse map. Without it short runs learn less, and long runs on thin structures more.

    Raises:
        ValueError: Sizes no head can be built from.
    """

    def __init__(  # the first four are every head's
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        in_chans: int = 3,
        token_channels: int = 8,
        pixel_channels: int = 16,
        coarse: bool = True,
    ) -> None:
        super().__init__()
        check_layout(channels, strides, num_classes)
        if in_chans < 1:
            raise ValueError(f"expected in_chans >= 1, got {in_chans=}")
        if min(token_channels, pixel_channels) < 1:
            raise ValueError(f"expected widths >= 1, got {token_channels=}, {pixel_channels=}")
        self.maps = FeatureMaps(channels, strides)
        self.stride = min(strides)
        self.to_pixels = nn.Conv2d(sum(channels), token_channels * self.stride**2, kernel_size=1)
        self.shuffle = nn.PixelShuffle(self.stride)
        self.look = nn.Conv2d(in_chans, pixel_channels, kernel_size=3, padding=1)
        self.mix = nn.Conv2d(token_channels + pixel_channels, pixel_channels, kernel_size=3, padding=1)
        self.act = nn.GELU()
        widths = {"coarse": sum(channels)} if coarse else {}
        widths["fine"] = pixel_channels
        self.classifier = nn.ModuleDict({name: nn.Conv2d(width, num_classes, 1) for name, width in widths.items()})
        # NOTE: torch's own scale halves what passes through each of them, so that short runs hardly see the tokens.
        for conv in (self.to_pixels, self.look, self.mix):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, features: Sequence[Tensor], image: Tensor) -> Tensor:
        """Decode.

        Args:
            features: One (B, C_i, rows_i, cols_i) for each entry of ``channels``.
            image: (B, in_chans, height, width).

        Returns:
            (B, num_classes, height, width) logits.
        """
        size = (image.shape[-2], image.shape[-1])
        tokens = self.maps(features)
        pixels = self.shuffle(self.to_pixels(tokens))  # (B, token_channels, rows * stride, cols * stride)
        pixels = resample(pixels, 1, 1, size)
        seen = self.act(self.look(image))  # (B, pixel_channels, height, width)
        mixed = self.act(self.mix(torch.cat([pixels, seen], dim=1)))
        logits: Tensor = self.classifier["fine"](mixed)
        if "coarse" in self.classifier:
            coarse: Tensor = self.classifier["coarse"](tokens)  # (B, num_classes, rows, cols)
            logits = logits + resample(coarse, self.stride, 1, size)
        return logits
