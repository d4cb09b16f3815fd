"""What a run is going to do, said before its first step; and what a step takes, once some have been measured."""

from __future__ import annotations

import logging
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback

from castvision.data.datasets.checking import spread
from castvision.data.datasets.samples import PixelDataset
from castvision.ignored import IGNORED
from castvision.training.budget import batches_a_step, steps_in
from castvision.training.callbacks.progress import seconds_left
from castvision.training.data.data_module import ImageDataModule

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer

logger = logging.getLogger(__name__)

LOOKED_AT = 32
"""Masks that are read to tell how many images show each class."""
LOOK_SECONDS = 3.0
"""After which no further mask is read."""
MEASURED_STEPS = 5
MEASURED_SECONDS = 3.0
"""A step's time is told after so many steps, or the first one after so many seconds; the very first never counts."""
_MOST_CLASSES = 12


class Announcement(Callback):
    """Tell what is trained on what, for how long, and where results go.

    Args:
        folder: The run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._since: float | None = None
        self._steps = 0
        self._is_told = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before held-out images are tried and training begins."""
        data: Any = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or not isinstance(data, ImageDataModule):
            return
        train = data.dataset("train")
        sizes = [f"{len(data.dataset(split)):,} {told}" for split, told in (("val", "held-out"),)]  # type: ignore[arg-type]
        images = len(data.sampler(train)) * trainer.world_size  # type: ignore[arg-type]  # the sampler has a share
        recipe: Any = getattr(pl_module, "recipe", None)
        name = getattr(recipe, "model_name", type(pl_module).__name__)
        parameters = sum(value.numel() for value in pl_module.parameters() if value.requires_grad)
        logger.info("trains %s, %s parameters, on %s", name, f"{parameters:,}", trainer.strategy.root_device)
        logger.info("data: %s training and %s images%s", f"{images:,}", *sizes, classes_told(train, data.class_names))
        logger.info("%s", steps_told(trainer, data))
        logger.info("results go to %s", self.folder)

    def on_train_batch_end(  # Lightning's hook
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the first steps, once."""
        if self._is_told or not trainer.is_global_zero:
            return
        if self._since is None:
            self._since = _now(trainer)
            return
        self._steps += 1
        if self._steps < MEASURED_STEPS and time.perf_counter() - self._since < MEASURED_SECONDS:
            return
        self._is_told = True
        each = (_now(trainer) - self._since) / self._steps
        left = seconds_left(trainer, 1 / max(each, 1e-9))
        told = "" if left is None else f", {timedelta(seconds=round(left))} to go without held-out images"
        logger.info("a step takes %.3g s (mean of %d)%s%s", each, self._steps, told, memory_told(trainer))


def steps_told(trainer: Trainer, data: ImageDataModule) -> str:
    """Batch, steps and epochs on one line."""
    batches = data.steps_an_epoch
    limit = trainer.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps, gathered = steps_in(trainer, batches, 1), batches_a_step(trainer, 0)
    told = f"batches of {data.batch_size}, {steps:,} steps an epoch"
    if gathered > 1:
        told += f" of {gathered} batches"
    totals = []
    if trainer.max_epochs not in (None, -1):
        totals.append(steps_in(trainer, batches, trainer.max_epochs))
        told += " at first" if totals[0] != steps * trainer.max_epochs else ""
    totals += [trainer.max_steps] if trainer.max_steps != -1 else []
    if not totals:
        return f"{told}, until it is stopped"
    total = min(totals)
    epochs = "" if trainer.max_epochs in (None, -1) else f" in at most {trainer.max_epochs} epochs"
    return f"{told}, {total:,} steps in all{epochs}"


def classes_told(dataset: Any, class_names: Sequence[str]) -> str:
    """How many training images show each class; empty for data that cannot be counted in seconds."""
    counted = images_per_class(dataset, len(class_names))
    if counted is None:
        return ""
    counts, looked_at, total = counted
    shown = [f"{name} {count:,}" for name, count in zip(class_names, counts, strict=True)][:_MOST_CLASSES]
    more = f" and {len(class_names) - _MOST_CLASSES} more classes" if len(class_names) > _MOST_CLASSES else ""
    of = "" if looked_at == total else f" of {looked_at} looked at"
    return f"; images{of} with {', '.join(shown)}{more}"


def images_per_class(dataset: Any, num_classes: int) -> tuple[list[int], int, int] | None:
    """Count the images of each class; of masks in some images only. The random state stays as it is.

    Args:
        dataset: Of training images.
        num_classes: Its classes.

    Returns:
        (images of each class, images looked at, images in all); None where targets are made while training.
    """
    known = getattr(getattr(dataset, "table", dataset), "targets", None)
    if known is not None and num_classes:
        array = np.asarray(known)
        counts = array.sum(axis=0) if array.ndim == 2 else np.bincount(array, minlength=num_classes)
        return [int(count) for count in counts], len(array), len(array)
    if not isinstance(dataset, PixelDataset) or not num_classes:
        return None
    counts = np.zeros(num_classes, np.int64)
    until, looked_at = time.perf_counter() + LOOK_SECONDS, 0
    for index in spread(len(dataset), LOOKED_AT):
        target = dataset.read(index)[1]
        classes = np.unique(target)
        counts[classes[classes != IGNORED].astype(np.int64)] += 1
        looked_at += 1
        if time.perf_counter() > until:
            break
    return counts.tolist(), looked_at, len(dataset)


def memory_told(trainer: Trainer) -> str:
    """The most memory used so far, of the device or of this process; empty where the system does not tell."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return f", {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB of GPU memory"
    if sys.platform == "win32":
        return ""
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f", {most * (1 if sys.platform == 'darwin' else 1024) / 1e9:.2f} GB of memory"


def _now(trainer: Trainer) -> float:
    """The clock, once a GPU has done what it was given."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
    return time.perf_counter()
