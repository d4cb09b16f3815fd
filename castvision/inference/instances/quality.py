"""Panoptic quality of predicted objects (Kirillov et al., 2019, arXiv 1801.00868)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Array = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


class PanopticTally:
    """Matches and misses, added up over images.

    A predicted and a true object of one class match where their intersection over union is above a half; then no other
    can match either. PQ = Σ IoU of matches / (matches + ½ predicted alone + ½ true alone) = SQ · RQ, SQ the mean IoU of
    the matches, RQ their F1.

    Ignored pixels are taken out of unions, and an object of which more than half is ignored is not missed, nor wrong.
    The same is in ``torchmetrics.detection.PanopticQuality``, whose figures these are; it lists all pixels of an image
    in tensors of 64 bits, this counts pairs of numbers.

    Args:
        classes: How many there are.

    Attributes:
        iou: (classes,) float64, sums over matches.
        matched: (classes,) int64.
        wrong: (classes,) int64, predicted objects alone.
        missed: (classes,) int64, true objects alone.
    """

    def __init__(self, classes: int) -> None:
        self.iou = np.zeros(classes)
        self.matched, self.wrong, self.missed = (np.zeros(classes, np.int64) for _ in range(3))

    def update(
        self, found: Array, found_classes: Array, true: Array, true_classes: Array, is_unknown: Mask, is_ignored: Mask
    ) -> None:
        """Add one image.

        Args:
            found: (height, width) numbers of predicted objects, 0 = none.
            found_classes: Of each number; the first is not read.
            true: (height, width) numbers of true objects, 0 = none.
            true_classes: Likewise.
            is_unknown: (height, width): where nothing was predicted.
            is_ignored: (height, width): where no truth is known.
        """
        count_found, count_true = len(found_classes) + 1, len(true_classes) + 1  # the last: unknown, ignored
        one = np.where(is_unknown, count_found - 1, found).astype(np.int64)
        two = np.where(is_ignored, count_true - 1, true).astype(np.int64)
        pairs, pixels = np.unique(one * count_true + two, return_counts=True)
        first, second = pairs // count_true, pairs % count_true
        area_found = np.bincount(first, pixels, minlength=count_found)
        area_true = np.bincount(second, pixels, minlength=count_true)
        void_found, void_true = np.zeros(count_found), np.zeros(count_true)
        in_void, of_void = second == count_true - 1, first == count_found - 1
        void_found[first[in_void]] = pixels[in_void]
        void_true[second[of_void]] = pixels[of_void]
        is_pair = (first > 0) & (second > 0) & ~in_void & ~of_void
        first, second, common = first[is_pair], second[is_pair], pixels[is_pair]
        union = area_found[first] - void_found[first] + area_true[second] - void_true[second] - common
        labels = np.asarray(found_classes)[first]
        is_match = (labels == np.asarray(true_classes)[second]) & (2 * common > union)
        np.add.at(self.iou, labels[is_match], (common / union)[is_match])
        np.add.at(self.matched, labels[is_match], 1)
        for alone, classes, area, void, matches in (
            (self.wrong, found_classes, area_found, void_found, first[is_match]),
            (self.missed, true_classes, area_true, void_true, second[is_match]),
        ):
            is_alone = (area[:-1] > 0) & (2 * void[:-1] <= area[:-1])
            is_alone[0] = False
            is_alone[matches] = False
            np.add.at(alone, np.asarray(classes)[is_alone], 1)

    def facts(self, things: Sequence[int]) -> dict[str, float | None]:
        """What `means` gives, for the record of an image: rounded, None for NaN."""
        return {name: None if np.isnan(value) else round(value, 6) for name, value in self.means(things).items()}

    def merge(self, more: PanopticTally) -> None:
        """Add what was counted of other images."""
        self.iou += more.iou
        self.matched += more.matched
        self.wrong += more.wrong
        self.missed += more.missed

    def of_classes(self) -> Array:
        """(classes, 3) float64: PQ, SQ and RQ, 0..1; all NaN for a class without any object, SQ 0 without a match."""
        total = self.matched + (self.wrong + self.missed) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            recognition = self.matched / total
            segmentation = np.where(self.matched > 0, self.iou / self.matched, 0.0)
        segmentation = np.where(total > 0, segmentation, np.nan)
        return np.stack([segmentation * recognition, segmentation, recognition], axis=1)

    def describe(self, rows: Sequence[dict[str, Any]], things: Sequence[int]) -> None:
        """Add ``pq``, ``sq``, ``rq`` and the counts of the classes with objects to a row for each class."""
        values = self.of_classes().tolist()
        for label, row in enumerate(rows):
            is_thing = label in things
            for name, value in zip(("pq", "sq", "rq"), values[label], strict=True):
                row[name] = value if is_thing and not np.isnan(value) else None
            for name in ("matched", "wrong", "missed"):
                row[name] = int(getattr(self, name)[label]) if is_thing else None

    def means(self, things: Sequence[int]) -> dict[str, float]:
        """``pq``, ``sq`` and ``rq``: means over the classes with objects of which any was found or true; else NaN."""
        values = self.of_classes()[list(things)]
        values = values[~np.isnan(values[:, 0])]
        mean = values.mean(axis=0) if len(values) else np.full(3, np.nan)
        return dict(zip(("pq", "sq", "rq"), mean.tolist(), strict=True))
