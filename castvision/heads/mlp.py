"""The decoder of SegFormer (arXiv 2105.15203): a linear map for each level, all of them fused by another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from castvision.heads.features import ConvNormAct, Laterals, check_layout, check_options, gather, resample

if TYPE_CHECKING:
    from collections.abc import Sequence


class MlpHead(nn.Module):
    """Each level mapped to one width, enlarged to the finest grid, concatenated, fused, classified.

    Nothing in it looks beyond a place and what was interpolated there: the backbone must have seen the surroundings.

    Args:
        channels: Channels of each feature map.
        strides: Pixels per cell of each feature map.
        num_classes: Logits per pixel.
        width: Channels of each level and of the fused map.
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
        self.fuse = ConvNormAct(len(channels) * width, width, kernel_size=1)
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
        fused = self.fuse(torch.cat(gather(self.laterals(features), strides), dim=1))  # (B, width, rows, cols)
        logits: Tensor = self.classifier(self.dropout(fused))
        return resample(logits, strides[0], 1, (image.shape[-2], image.shape[-1]))
