"""What the heads share: checks of their arguments, projections of the feature maps, and bringing maps to one grid.

Normalisation is over the channels of each place, never over places or images: a batch of one trains like any other, and
what a head says of a pixel does not change with the extent of the tile it lies in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_layout(channels: Sequence[int], strides: Sequence[int], num_classes: int) -> None:
    """Refuse sizes no head can be built from.

    Raises:
        ValueError: Lists of different or no length, or a number below 1.
    """
    if not channels or len(channels) != len(strides):
        raise ValueError(f"expected one stride for each feature map, got {channels=}, {strides=}")
    if min(*channels, *strides, num_classes) < 1:
        raise ValueError(f"expected numbers >= 1, got {channels=}, {strides=}, {num_classes=}")


def check_options(width: int, dropout: float) -> None:
    """Refuse a width or a dropout no head can work with.

    Raises:
        ValueError: ``width`` below 1, or ``dropout`` outside [0, 1).
    """
    if width < 1:
        raise ValueError(f"expected width >= 1, got {width=}")
    if not 0 <= dropout < 1:
        raise ValueError(f"expected 0 <= dropout < 1, got {dropout=}")


class FeatureMaps(nn.Module):
    """Normalise each map over its channels (some backbones have, some have not) and bring all to the finest grid.

    Args:
        channels: Channels of each map.
        strides: Pixels per cell of each map.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in channels)
        self.strides = tuple(strides)
        self.finest = min(range(len(strides)), key=lambda place: strides[place])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Gather.

        Args:
            features: (B, C_i, rows_i, cols_i) each.

        Returns:
            (B, sum of C_i, rows, cols), rows and cols those of the map with the smallest stride.
        """
        torch._assert(len(features) == len(self.norms), "as many feature maps as the head was built for")
        maps = [norm(feature) for norm, feature in zip(self.norms, features, strict=True)]
        return torch.cat(gather(maps, self.strides, self.finest), dim=1)


class Laterals(nn.Module):
    """Every map normalised and projected to one width, from the finest to the coarsest.

    Args:
        channels: Channels of each map, in the backbone's order.
        strides: Pixels per cell of each map.
        width: Channels afterwards.

    Attributes:
        order: Places of the maps in the backbone's order, finest first.
        strides: Pixels per cell, ascending.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int) -> None:
        super().__init__()
        self.order = sorted(range(len(strides)), key=lambda place: strides[place])
        self.strides = tuple(strides[place] for place in self.order)
        self.norms = nn.ModuleList(LayerNorm2d(channels[place]) for place in self.order)
        self.projections = nn.ModuleList(nn.Conv2d(channels[place], width, kernel_size=1) for place in self.order)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(B, width, rows_i, cols_i) each, of maps (B, C_i, rows_i, cols_i) in the backbone's order."""
        torch._assert(len(features) == len(self.norms), "as many feature maps as the head was built for")
        steps = zip(self.order, self.norms, self.projections, strict=True)
        return [project(norm(features[place])) for place, norm, project in steps]


class ConvNormAct(nn.Sequential):
    """Convolution that keeps the size, normalisation over the channels of each place, GELU.

    Args:
        in_chans: Channels before.
        width: Channels afterwards.
        kernel_size: Odd.
    """

    def __init__(self, in_chans: int, width: int, kernel_size: int) -> None:
        conv = nn.Conv2d(in_chans, width, kernel_size, padding=kernel_size // 2, bias=False)
        super().__init__(conv, LayerNorm2d(width), nn.GELU())


def gather(maps: Sequence[Tensor], strides: Sequence[int], target: int = 0) -> list[Tensor]:
    """Every map on the grid of the one at place ``target``."""
    size = (maps[target].shape[-2], maps[target].shape[-1])
    pairs = zip(maps, strides, strict=True)
    return [m if stride == strides[target] else resample(m, stride, strides[target], size) for m, stride in pairs]


def add_top_down(maps: Sequence[Tensor], strides: Sequence[int]) -> list[Tensor]:
    """Add to each map all coarser ones, enlarged; maps from the finest to the coarsest, of one width."""
    sums = list(maps)
    for place in range(len(maps) - 2, -1, -1):
        sums[place] = maps[place] + gather([maps[place], sums[place + 1]], strides[place : place + 2])[1]
    return sums


def resample(maps: Tensor, stride: int, target_stride: int, size: tuple[int, int]) -> Tensor:
    """Bring a map from one stride to a finer one, bilinearly.

    The map is enlarged by the ratio of the strides and cut to ``size``: images are padded at the bottom and right, and
    stretching the padded map over the image would shift what it says. A map too small for that (of a backbone that
    drops the last pixels) is stretched.

    Args:
        maps: (B, C, rows, cols).
        stride: Pixels per cell.
        target_stride: Pixels per cell afterwards.
        size: (height, width) afterwards.

    Returns:
        (B, C, height, width).
    """
    factor = stride // target_stride
    height, width = maps.shape[-2] * factor, maps.shape[-1] * factor
    if stride % target_stride or height < size[0] or width < size[1]:
        return functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    if factor > 1:
        maps = functional.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
    # NOTE: a negative padding cuts; a slice would tie an exported graph to sizes where there is something to cut.
    return functional.pad(maps, (0, size[1] - width, 0, size[0] - height))
