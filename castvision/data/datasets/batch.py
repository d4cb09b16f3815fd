"""What a data set gives: images and targets, and what a model is told beside its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

More = dict[str, Tensor]
Sample = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, More] | tuple[Tensor, Tensor, More, More]
"""An item: (image, target), with or without extras and further truth; all items of a data set have the same parts."""


class Batch(NamedTuple):
    """The parts of a batch by name: ``Batch(*batch)`` of what a loader gives, two parts or more.

    Attributes:
        image: (B, C, height, width) float32.
        target: (B, height, width) or (B,) int64, or (B, classes) float32.
        extras: Keyword arguments of the model, each (B, ...), such as ``pixel_mask`` (B, height, width) bool, True
            where a pixel is real and no padding.
        truth: What figures need beside the target and no model is shown, each (B, ...), such as ``distance``
            (B, height, width) float32: how long the way from the dot is, in image sides.
    """

    image: Tensor
    target: Tensor
    extras: Mapping[str, Tensor] = {}
    truth: Mapping[str, Tensor] = {}
