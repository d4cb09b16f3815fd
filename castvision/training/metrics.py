"""Figures of a whole data set, all read off one confusion matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


def metric_key(class_name: str) -> str:
    """A class's name as it stands in a metric's: lower case, words joined by underscores."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in class_name.lower()).split())


def classification_metrics(confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Accuracy over all images, and the mean over classes.

    Args:
        confusion: (classes, classes) counts, rows = truth.
        class_names: One for each class; with ten or fewer, each class's accuracy is given as well.

    Returns:
        ``acc1`` and ``mean_acc`` in percent, ``acc_NAME`` in percent.
    """
    counts = confusion.double().cpu()
    per_class = _ratio(counts.diagonal(), counts.sum(dim=1))
    figures = {
        "acc1": 100 * float(counts.diagonal().sum() / counts.sum().clamp(min=1)),
        "mean_acc": 100 * float(per_class.nanmean()),
    }
    if len(class_names) <= 10:
        figures |= _named("acc", 100 * per_class, class_names)
    return figures


def segmentation_metrics(confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Intersection over union, each class's over the pixels of the whole data set.

    Args:
        confusion: (classes, classes) pixel counts, rows = truth.
        class_names: One for each class.

    Returns:
        ``miou`` (mean over classes that occur), ``iou_NAME`` for each class, all 0..1; ``pixel_acc`` in percent.
    """
    counts = confusion.double().cpu()
    hits = counts.diagonal()
    iou = _ratio(hits, counts.sum(dim=0) + counts.sum(dim=1) - hits)
    figures = {"miou": float(iou.nanmean()), "pixel_acc": 100 * float(hits.sum() / counts.sum().clamp(min=1))}
    return figures | _named("iou", iou, class_names)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """NaN where a class never occurs."""
    return torch.where(whole > 0, part / whole.clamp(min=1), torch.nan)


def _named(prefix: str, values: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    pairs = zip(class_names, values.tolist(), strict=True)
    return {f"{prefix}_{metric_key(name)}": value for name, value in pairs if value == value}
