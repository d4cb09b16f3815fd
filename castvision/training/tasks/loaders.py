"""Batches of loaders that are not ours: brought into the form that tasks learn from, or refused by what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from castvision.data.datasets.batch import Batch, as_batch
from castvision.data.reading.labels import check_classes_found
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lightning.pytorch import LightningModule


class ForeignBatches:
    """Takes batches one by one.

    Args:
        kind: Of the task.
        num_classes: Of the task.
    """

    def __init__(self, kind: str, num_classes: int) -> None:
        self.kind, self.num_classes = kind, num_classes
        self._seen: dict[str, Tensor] = {}

    def take(self, batch: Any, stage: str, dtype: torch.dtype | str) -> Batch:
        """A batch as tasks want it.

        Args:
            batch: See `as_batch`.
            stage: "train", "val", "test" or "predict", which needs no targets.
            dtype: Of the model.

        Returns:
            Images, or bags of embeddings (B, tiles, channels) of slides, in the model's dtype; targets of pixels
            (B, height, width) int64, of images and slides (B,) int64 or, while training, (B, classes) shares, of
            several labels (B, classes) float32; further truth (B, height, width).

        Raises:
            ValueError: Images without a batch or channels, or not of floating point; targets of another shape, with
                fractions or labels that no class has.
        """
        needs_target = stage != "predict" and self.kind in ("segmentation", "classification", "slides", "multilabel")
        whole = as_batch(batch, needs_target=needs_target)
        truth = {name: _plane(value) for name, value in whole.truth.items()}
        whole = whole._replace(image=self._image(whole.image).to(dtype), truth=truth)
        if not needs_target:
            return whole
        target = whole.target
        if self.kind == "segmentation":
            target = self._pixels(whole)
            found = torch.bincount(target.flatten().cpu(), minlength=IGNORED + 1)
            self._seen[stage] = self._seen.get(stage, torch.zeros_like(found)) + found
        elif self.kind in ("classification", "slides"):
            target = self._classes(whole, stage)
        else:
            target = self._labels(whole)
        return whole._replace(target=target)

    def forget(self, stage: str) -> None:
        """Forget what was seen in a stage."""
        self._seen.pop(stage, None)

    def check_seen(self, stage: str, task: LightningModule, class_names: Sequence[str]) -> None:
        """Refuse masks in which one class alone was seen beside ignored pixels, once a stage has been through.

        Not after a few batches (Lightning's sanity check and ``fast_dev_run``), nor in one of several processes, which
        may have few images.

        Raises:
            ValueError: Such masks, as a rule of 0 and 255.
        """
        if stage not in self._seen:
            return
        trainer: Any = task.trainer
        if trainer.sanity_checking or trainer.fast_dev_run or trainer.world_size > 1:
            return
        found = self._seen.pop(stage)
        try:
            check_classes_found(found.numpy(), class_names, f"the batches of {stage}")
        except ValueError as error:
            raise ValueError(f"{str(error).partition(';')[0]}; if 255 is a class, give it as 1: mask // 255") from None

    def _image(self, image: Tensor) -> Tensor:
        """Images, or bags of embeddings, that are a batch of floating-point numbers."""
        told, form = (
            ("bags", "(B, tiles, channels)") if self.kind == "slides" else ("images", "(B, channels, height, width)")
        )
        if image.ndim != 1 + form.count(","):
            raise ValueError(f"expected {told} {form}, got {tuple(image.shape)}; stack single ones")
        if not image.is_floating_point():
            raise ValueError(
                f"expected floating-point {told}, got {image.dtype}; scale and normalise them first, such as "
                "(image / 255 - mean) / std"
            )
        return image

    def _pixels(self, batch: Batch) -> Tensor:
        wanted = (len(batch.image), *batch.image.shape[-2:])
        if tuple(batch.target.shape) != wanted:
            raise ValueError(
                f"expected masks of {wanted} (B, height, width) for images {tuple(batch.image.shape)}, got "
                f"{tuple(batch.target.shape)}; bring images and masks to one size, channels before the height"
            )
        target = _whole(batch.target, "masks")
        self._check_range(target[target != IGNORED], f" or {IGNORED} (ignored)")
        return target

    def _classes(self, batch: Batch, stage: str) -> Tensor:
        target, count = batch.target, len(batch.image)
        if target.shape == (count, self.num_classes):
            if ((target == 0) | (target == 1)).all() and (target.sum(dim=1) == 1).all():
                return target.argmax(dim=1)
            if stage == "train" and target.is_floating_point():
                return target.float()
        if target.shape not in ((count,), (count, 1)):
            raise ValueError(
                f"expected one class number for each of {count} images, got targets {tuple(target.shape)}; give "
                "(B,) numbers, and use MultiLabelTask where images have several labels"
            )
        target = _whole(target.flatten(), "labels")
        self._check_range(target, "")
        return target

    def _labels(self, batch: Batch) -> Tensor:
        target, wanted = batch.target, (len(batch.image), self.num_classes)
        if tuple(target.shape) != wanted or not ((target == 0) | (target == 1)).all():
            raise ValueError(
                f"expected zeros and ones {wanted} (B, classes), got {tuple(target.shape)} of "
                f"{_few(target)}; use ClassificationTask where each image has one class"
            )
        return target.float()

    def _check_range(self, target: Tensor, more: str) -> None:
        if not target.numel():
            return
        low, high = (int(value) for value in target.aminmax())
        if low < 0 or high >= self.num_classes:
            wrong = _few(target[(target < 0) | (target >= self.num_classes)])
            raise ValueError(
                f"expected labels 0..{self.num_classes - 1}{more}, got {wrong}; translate them, or set num_classes to "
                "one more than the largest"
            )


def _plane(truth: Any) -> Any:
    """(B, height, width) of (B, 1, height, width)."""
    return truth[:, 0] if isinstance(truth, Tensor) and truth.ndim == 4 and truth.shape[1] == 1 else truth


def _whole(target: Tensor, what: str) -> Tensor:
    """int64 of whole numbers, whatever their type."""
    fractions = target[target != target.round()] if target.is_floating_point() else target[:0]
    if fractions.numel():
        raise ValueError(
            f"expected class numbers in {what}, got fractions such as {_few(fractions)}; torchvision's ToTensor "
            "divides by 255: make tensors of them by torch.from_numpy"
        )
    return target.long()


def _few(values: Tensor) -> list[float]:
    """Of the values that occur, the lowest."""
    return sorted({round(value, 6) for value in values.flatten().tolist()})[:8]
