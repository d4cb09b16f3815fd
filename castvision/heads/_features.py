"""What the heads share: checks of their arguments and bringing feature maps to one grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_layout(channels: Sequence[int], strides: Sequence[int], num_classes: int, in_chans: int) -> None:
    """Refuse sizes no head can be built from.

    Raises:
        ValueError: Lists of different or no length, or a number below 1.
    """
    if not channels or len(channels) != len(strides):
        raise ValueError(f"expected one stride for each feature map, got {channels=}, {strides=}")
    if min(*channels, *strides, num_classes, in_chans) < 1:
        raise ValueError(f"expected numbers >= 1, got {channels=}, {strides=}, {num_classes=}, {in_chans=}")


class FeatureMaps(nn.Module):
    """Normalise each map over its channels (some backbones have, some have not) and bring all to the finest grid.

    Args:
        channels: Channels of each map.
        strides: Pixels per cell of each map.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in channels)
        self.finest = min(range(len(strides)), key=lambda place: strides[place])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Gather.

        Args:
            features: (B, C_i, rows_i, cols_i) each.

        Returns:
            (B, sum of C_i, rows, cols), rows and cols those of the map with the smallest stride.
        """
        torch._assert(len(features) == len(self.norms), "as many feature maps as the head was built for")
        rows, cols = features[self.finest].shape[-2:]
        maps = [norm(feature) for norm, feature in zip(self.norms, features, strict=True)]
        return torch.cat([resize(feature, (rows, cols)) for feature in maps], dim=1)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation to (height, width); the very same tensor where nothing changes."""
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
