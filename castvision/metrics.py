"""Metrics of a whole data set: read off one confusion matrix, or counted batch by batch where that does not do.

Nothing here is a mean over images: counts are added up over the data set and divided once.
"""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import Metric
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelStatScores

from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence


def metric_key(class_name: str) -> str:
    """A class's name as it stands in a metric's: lower case, words joined by underscores."""
    return "_".join("".join(letter if letter.isalnum() else " " for letter in class_name.lower()).split())


def metric_keys(class_names: Sequence[str]) -> list[str]:
    """A key for each class that no other has: `metric_key`, and the class's number behind it where that is not enough.

    Names that differ in punctuation or case only ("> 5 mm" and "< 5 mm") and those without a letter need the number.
    """
    keys = [metric_key(name) for name in class_names]
    while True:
        unclear = [label for label, key in enumerate(keys) if not key or keys.count(key) > 1]
        if not unclear:
            return keys
        for label in unclear:
            keys[label] = f"{keys[label]}_{label}".lstrip("_")


def classification_metrics(confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Accuracy over all images, and the mean over classes.

    Args:
        confusion: (classes, classes) counts, rows = truth.
        class_names: One for each class; with ten or fewer, each class's accuracy is given as well.

    Returns:
        ``acc1``, ``mean_acc`` and ``macro_f1`` (means over classes that occur) and ``acc_NAME``, all 0..1.
    """
    per_class = per_class_metrics(confusion)
    means = {"mean_acc": float(per_class["recall"].nanmean()), "macro_f1": float(per_class["f1"].nanmean())}
    metrics = {"acc1": _accuracy(confusion), **means}
    return metrics | (named_metrics("acc", per_class["recall"], class_names) if len(class_names) <= 10 else {})


def segmentation_metrics(confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Overlap of prediction and truth, each class's over the pixels of the whole data set.

    Args:
        confusion: (classes, classes) pixel counts, rows = truth.
        class_names: One for each class.

    Returns:
        ``miou`` and ``macro_f1`` (means over classes that occur) and ``iou_NAME`` for each class, and
        ``pixel_acc``, all 0..1.
    """
    per_class = per_class_metrics(confusion)
    means = {"miou": float(per_class["iou"].nanmean()), "macro_f1": float(per_class["f1"].nanmean())}
    return {**means, "pixel_acc": _accuracy(confusion), **named_metrics("iou", per_class["iou"], class_names)}


def _accuracy(confusion: Tensor) -> float:
    """Share of the counts on the diagonal, 0..1."""
    counts = confusion.double().cpu()
    return float(counts.diagonal().sum() / counts.sum().clamp(min=1))


def per_class_metrics(confusion: Tensor) -> dict[str, Tensor]:
    """Metrics of each class.

    torchmetrics' own take predictions, not a confusion matrix, divide in fp32, and give 0 where there is nothing to
    divide by; apart from that they are the same.

    Args:
        confusion: (classes, classes) counts, rows = truth.

    Returns:
        ``iou``, ``f1``, ``precision``, ``recall``, 0..1, NaN where there is nothing to divide by, and ``count`` of the
        truth; (classes,) float64 each.
    """
    counts = confusion.double().cpu()
    hits, truth, predicted = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
    return {
        "iou": _ratio(hits, truth + predicted - hits),
        "f1": _ratio(2 * hits, truth + predicted),
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, truth),
        "count": truth,
    }


def pixel_table(confusion: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float | None]]:
    """A segmentation's metrics as one row for each class, for a report; None stands for one that does not exist.

    Args:
        confusion: (classes, classes) pixel counts, rows = truth.
        class_names: One for each class.

    Returns:
        Rows with ``name``, ``iou``, ``f1``, ``precision``, ``recall``, all 0..1, and ``count``.
    """
    return _rows(per_class_metrics(confusion), class_names)


def image_table(confusion: Tensor, class_names: Sequence[str]) -> list[dict[str, str | float | None]]:
    """A classification's metrics as one row for each class; overlap is no measure of whole images.

    Args:
        confusion: (classes, classes) counts of images, rows = truth.
        class_names: One for each class.

    Returns:
        Rows with ``name``, ``acc`` (the share of the class's images that are found), ``f1``, ``precision``, all 0..1,
        and ``count``.
    """
    found = per_class_metrics(confusion)
    return _rows({"acc": found["recall"], **{key: found[key] for key in ("f1", "precision", "count")}}, class_names)


def _rows(metrics: dict[str, Tensor], class_names: Sequence[str]) -> list[dict[str, str | float | None]]:
    columns = {key: values.tolist() for key, values in metrics.items()}
    rows: list[dict[str, str | float | None]] = []
    for label, name in enumerate(class_names):
        row = {key: None if math.isnan(values[label]) else values[label] for key, values in columns.items()}
        rows.append({"name": name, **row, "count": int(columns["count"][label])})
    return rows


def named_metrics(prefix: str, values: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """``PREFIX_NAME`` of each class whose value (classes,) is not NaN."""
    pairs = zip(metric_keys(class_names), values.tolist(), strict=True)
    return {f"{prefix}_{key}": value for key, value in pairs if not math.isnan(value)}


def multilabel_metrics(scores: Tensor, class_names: Sequence[str]) -> dict[str, float]:
    """Average precision and F1 (at one half), mean over classes and each class's.

    Args:
        scores: (2, classes): average precision, F1; NaN where a class never occurs.
        class_names: One for each class.

    Returns:
        ``map``, ``f1``, ``ap_NAME`` and ``f1_NAME``, 0..1.
    """
    by_name = {}
    for mean_name, name, values in zip(("map", "f1"), ("ap", "f1"), scores, strict=True):
        by_name[mean_name] = float(values.nanmean())
        by_name |= named_metrics(name, values, class_names)
    return by_name


class MultiLabelScores(nn.Module):
    """Average precision and F1 at one half of each class, over the whole data set.

    Args:
        num_classes: Classes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.precision = MultilabelAveragePrecision(num_classes, average=None)
        self.counts = MultilabelStatScores(num_classes, average=None)

    def update(self, probabilities: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            probabilities: (B, classes) float, 0..1.
            target: (B, classes) int64, zeros and ones.
        """
        self.precision.update(probabilities, target)
        self.counts.update(probabilities, target)

    def compute(self) -> Tensor:
        """(2, classes) float64: average precision and F1; NaN for a class that never occurs."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples")  # such classes are left out below
            precision = self.precision.compute().detach().cpu()  # (classes,)
        hits, false, _, missed, present = self.counts.compute().detach().cpu().double().unbind(dim=1)
        scores = torch.stack([precision.double(), _ratio(2 * hits, 2 * hits + false + missed)])
        return torch.where(present > 0, scores, torch.nan)

    def reset(self) -> None:
        """Begin anew."""
        self.precision.reset()
        self.counts.reset()


def reset_metrics(module: nn.Module, stage: str) -> None:
    """Let all metrics of a stage that a module holds, in a ``ModuleDict`` with a key for each, count anew."""
    for name, metric in module.named_modules():
        if isinstance(metric, Metric) and stage in name.split("."):
            metric.reset()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """NaN where there is nothing to divide by."""
    return torch.where(whole > 0, part / whole.clamp(min=1), torch.nan)


class BoundaryF1(Metric):
    """How well contours agree: F1 of boundary pixels that find a partner within a tolerance.

    A boundary pixel of a class is one with a pixel of another class above, below, left or right of it; the image's edge
    and ignored pixels make no boundary. Precision is the share of predicted boundary pixels with a true one of that
    class in the square of ``2 · tolerance + 1`` pixels around, recall the other way round, both over the whole data
    set (after Csurka et al., 2013, who take a disc and the mean over images).

    Args:
        num_classes: Classes.
        tolerance: Pixels, up to which contours may lie apart (Chebyshev distance).

    Raises:
        ValueError: Fewer than two classes, or a negative tolerance.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self, num_classes: int, tolerance: int = 2) -> None:
        super().__init__()
        if num_classes < 2 or tolerance < 0:
            raise ValueError(f"expected num_classes >= 2 and tolerance >= 0, got {num_classes=}, {tolerance=}")
        self.num_classes, self.tolerance = num_classes, tolerance
        # predicted boundary pixels and those with a partner, true ones and those with a partner
        self.add_state("counts", torch.zeros(4, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: (B, height, width) int64.
            target: (B, height, width) int64, 255 = ignored.
        """
        is_real = target != IGNORED
        for label in range(self.num_classes):  # NOTE: one class at a time, since all at once would not fit for 150
            predicted = _boundary(prediction == label, is_real)
            true = _boundary(target == label, is_real)
            found = predicted & self._grow(true)
            met = true & self._grow(predicted)
            self.counts[:, label] += torch.stack([mask.sum() for mask in (predicted, found, true, met)])

    def _grow(self, mask: Tensor) -> Tensor:
        size = 2 * self.tolerance + 1
        return functional.max_pool2d(mask[:, None].float(), size, stride=1, padding=self.tolerance)[:, 0] > 0

    def compute(self) -> Tensor:
        """F1 of each class, (classes,) float64 in 0..1; NaN for a class without any boundary."""
        return boundary_f1(self.counts)


def boundary_f1(counts: Tensor) -> Tensor:
    """What `BoundaryF1` computes from its counts, (4, classes) int64."""
    predicted, found, true, met = counts.double()
    precision, recall = _ratio(found, predicted).nan_to_num(0.0), _ratio(met, true).nan_to_num(0.0)
    f1 = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(predicted + true > 0, f1, torch.nan)


def _boundary(mask: Tensor, is_real: Tensor) -> Tensor:
    """Pixels of a mask with a real pixel outside it beside them; (B, height, width) bool each."""
    outside = functional.pad(is_real & ~mask, (1, 1, 1, 1))
    beside = outside[:, 2:, 1:-1] | outside[:, :-2, 1:-1] | outside[:, 1:-1, 2:] | outside[:, 1:-1, :-2]
    return mask & is_real & beside


DISTANCE_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Bounds of the bins in which metrics by distance are reported, in image sides."""


def distance_metrics(values: Tensor) -> dict[str, float]:
    """``distance_iou_LOW_to_HIGH`` of each bin of `DISTANCE_EDGES` whose value (bins,) is not NaN."""
    pairs = zip(pairwise(DISTANCE_EDGES), values.tolist(), strict=True)
    return {f"distance_iou_{low:g}_to_{high:g}": value for (low, high), value in pairs if not math.isnan(value)}


class DistanceIoU(Metric):
    """Intersection over union of one class by the distance of a pixel: how far from the start a path is followed.

    Args:
        edges: Ascending; bin i holds distances from ``edges[i]`` up to but not including ``edges[i + 1]``. Pixels
            outside of all bins (beyond the edges, NaN, infinite) count nowhere.
        foreground: The class.

    Raises:
        ValueError: Fewer than two edges, or edges that do not ascend.
    """

    full_state_update = False
    edges: Tensor
    counts: Tensor

    def __init__(self, edges: Sequence[float], foreground: int = 1) -> None:
        super().__init__()
        if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
            raise ValueError(f"expected two or more ascending edges, got {list(edges)}")
        self.foreground = foreground
        self.register_buffer("edges", torch.tensor(edges, dtype=torch.float32), persistent=False)
        self.add_state("counts", torch.zeros(2, len(edges) - 1, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor, distance: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: (B, height, width) int64.
            target: (B, height, width) int64, 255 = ignored.
            distance: (B, height, width) float.
        """
        num_bins = len(self.edges) - 1
        bins = torch.bucketize(distance.float(), self.edges, right=True) - 1  # -1 below, num_bins above (NaN too)
        counted = (bins >= 0) & (bins < num_bins) & (target != IGNORED)
        predicted, true = (prediction == self.foreground) & counted, (target == self.foreground) & counted
        for row, mask in enumerate((predicted & true, predicted | true)):
            self.counts[row] += torch.bincount(bins[mask], minlength=num_bins)

    def compute(self) -> Tensor:
        """IoU of each bin, (bins,) float64 in 0..1; NaN for a bin without the class in truth and prediction."""
        intersection, union = self.counts.double()
        return _ratio(intersection, union)
