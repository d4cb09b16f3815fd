"""A light feature pyramid (arXiv 1612.03144, 1901.02446): coarse levels added to fine ones, the levels summed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from castvision.heads.features import (
    ConvNormAct,
    Laterals,
    add_top_down,
    check_layout,
    check_options,
    gather,
    resample,
)

if TYPE_CHECKING:
    from collections.abc import Sequence


class FpnHead(nn.Module):
    """Lateral maps, a top-down path, a 3×3 convolution for each level, their sum on the finest grid, classified.

    Args:
        channels: Channels of each feature map.
        strides: Pixels per cell of each feature map.
        num_classes: Logits per pixel.
        width: Channels of each level.
        dropout: Probability of dropping a channel before the classifier.

    Raises:
        ValueError: Sizes no head can be built from, or a dropout outside [0, 1).
    """

    def __init__(  # the first four are every head's
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        width: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_layout(channels, strides, num_classes)
        check_options(width, dropout)
        self.laterals = Laterals(channels, strides, width)
        self.smooth = nn.ModuleList(ConvNormAct(width, width, kernel_size=3) for _ in channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, features: Sequence[Tensor], image: Tensor) -> Tensor:
        """Decode.

        Args:
            features: One (B, C_i, rows_i, cols_i) for each entry of ``channels``.
            image: (B, in_chans, height, width); only its size matters here.

        Returns:
            (B, num_classes, height, width) logits.
        """
        strides = self.laterals.strides
        levels = add_top_down(self.laterals(features), strides)
        levels = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=True)]
        summed = torch.stack(gather(levels, strides)).sum(dim=0)  # (B, width, rows, cols)
        logits: Tensor = self.classifier(self.dropout(summed))
        return resample(logits, strides[0], 1, (image.shape[-2], image.shape[-1]))
