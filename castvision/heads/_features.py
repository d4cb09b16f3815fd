"""What the heads share: checks of their arguments and bringing feature maps to one grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
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


def gather_finest(features: Sequence[Tensor], finest: int) -> Tensor:
    """Bring all maps to the grid of map number ``finest`` and concatenate them.

    Args:
        features: (B, C_i, rows_i, cols_i) each.
        finest: Place of the map with the smallest stride.

    Returns:
        (B, sum of C_i, rows, cols).
    """
    if len(features) == 1:
        return features[0]
    size = features[finest].shape[-2:]
    return torch.cat([resize(feature, (size[0], size[1])) for feature in features], dim=1)


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation to (height, width); the very same tensor where nothing changes."""
    if maps.shape[-2:] == size:
        return maps
    return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
