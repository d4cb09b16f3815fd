"""What a data set gives: images and targets, and what a model is told beside its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

Sample = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, dict[str, Tensor]]
"""An item: (image, target), or (image, target, extras); all items of a data set have the same parts."""


class Batch(NamedTuple):
    """The parts of a batch by name: ``Batch(*batch)`` of what a loader gives, two parts or more.

    Attributes:
        image: (B, C, height, width) float32.
        target: (B, height, width) or (B,) int64, or (B, classes) float32.
        extras: Keyword arguments of the model, each (B, ...), such as ``pixel_mask`` (B, height, width) bool, True
            where a pixel is real and no padding.
    """

    image: Tensor
    target: Tensor
    extras: Mapping[str, Tensor] = {}
