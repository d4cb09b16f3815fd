"""The decoder of UPerNet (arXiv 1807.10221): a feature pyramid whose coarsest level has seen the whole image."""

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

POOLED_SIZES = (1, 2, 3, 6)


class UperHead(nn.Module):
    """Pyramid pooling on the coarsest level, a top-down path, all levels concatenated, fused, classified.

    The pooled maps are means over the image or tile, so two tiles do not quite agree about a pixel that both see.

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
        self.pooling = PyramidPooling(width)
        self.smooth = nn.ModuleList(ConvNormAct(width, width, kernel_size=3) for _ in channels[1:])
        self.fuse = ConvNormAct(len(channels) * width, width, kernel_size=3)
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
        *finer, coarsest = self.laterals(features)
        *finer, coarsest = add_top_down([*finer, self.pooling(coarsest)], strides)
        levels = [smooth(level) for smooth, level in zip(self.smooth, finer, strict=True)]
        fused = self.fuse(torch.cat(gather([*levels, coarsest], strides), dim=1))  # (B, width, rows, cols)
        logits: Tensor = self.classifier(self.dropout(fused))
        return resample(logits, strides[0], 1, (image.shape[-2], image.shape[-1]))


class PyramidPooling(nn.Module):
    """A map beside its means over 1, 2×2, 3×3 and 6×6 regions, fused to the map's width.

    Args:
        width: Channels of the map.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(ConvNormAct(width, width, kernel_size=1) for _ in POOLED_SIZES)
        self.fuse = ConvNormAct((1 + len(POOLED_SIZES)) * width, width, kernel_size=3)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, width, rows, cols) of a map of that shape, of any size."""
        size = (maps.shape[-2], maps.shape[-1])
        seen = [maps]
        for pooled, project in zip(POOLED_SIZES, self.projections, strict=True):
            means = project(mean_regions(maps, pooled))  # (B, width, pooled, pooled)
            seen.append(nn.functional.interpolate(means, size=size, mode="bilinear", align_corners=False))
        fused: Tensor = self.fuse(torch.cat(seen, dim=1))
        return fused


def mean_regions(maps: Tensor, pooled: int) -> Tensor:
    """Adaptive average pooling as two matrix products.

    Equal to ``adaptive_avg_pool2d``, which an export with dynamic sizes does not carry over: the exported graph keeps
    the regions of the size it was traced with.

    Args:
        maps: (B, C, rows, cols).
        pooled: Regions along each axis; rows and cols need not be multiples of it, nor as large.

    Returns:
        (B, C, pooled, pooled).
    """
    down, across = (_region_weights(length, pooled, maps) for length in maps.shape[-2:])
    return down @ maps @ across.transpose(0, 1)


def _region_weights(length: int, pooled: int, like: Tensor) -> Tensor:
    """(pooled, length): row i averages places floor(i · length / pooled) up to ceil((i + 1) · length / pooled)."""
    places = torch.arange(length, device=like.device)
    regions = torch.arange(pooled, device=like.device)[:, None]
    starts, stops = regions * length // pooled, ((regions + 1) * length + pooled - 1) // pooled
    inside = ((places >= starts) & (places < stops)).to(like.dtype)
    return inside / (stops - starts).to(like.dtype)
