"""The progress bar: epoch, time, images per second, loss, time left; plain lines where there is no terminal."""

from __future__ import annotations

import logging
import time
from collections import deque
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import RichProgressBar, Timer
from rich import get_console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn

from castvision.training.budget import batches_left

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 0.5
LINE_SECONDS = 15.0
WINDOW = 20
"""Refreshes over which speed is measured: the first ones, with caches cold, are soon forgotten."""


class TrainingBar(RichProgressBar):
    """Lightning's rich bar, asked twice a second only: reading the loss at every step would make a GPU wait.

    Args:
        line_seconds: Between two lines where the output is no terminal.
    """

    def __init__(self, line_seconds: float = LINE_SECONDS) -> None:
        super().__init__(refresh_rate=4, leave=False)
        self.line_seconds = line_seconds
        self.is_terminal = get_console().is_terminal
        if not self.is_terminal:
            self.disable()
        self._shown: dict[str, str] = {}
        self._began = time.perf_counter()
        self._held = 0.0  # seconds spent on held-out images, which are not training
        self._images = self._batches = 0
        self._start()

    def _now(self) -> float:
        return time.perf_counter() - self._held

    def _start(self) -> None:
        self._refreshed = self._now()
        self._marks = deque([(self._refreshed, self._images, self._batches)], maxlen=WINDOW)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        super().on_train_start(trainer, pl_module)
        self._began = time.perf_counter()
        self._start()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        super().on_validation_start(trainer, pl_module)
        if self._batches > self._marks[-1][2]:
            self._measure(trainer, self._now())  # short epochs end before it is time for a line
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the clock and show the metric that chooses the checkpoint."""
        super().on_validation_end(trainer, pl_module)
        self._held += time.perf_counter() - self._paused
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            monitor = str(getattr(pl_module, "monitor", "val/loss"))
            if monitor in trainer.callback_metrics:
                self._shown[monitor] = f"{float(trainer.callback_metrics[monitor]):.3f}"
            if not self.is_terminal:
                self._tell(trainer)

    def on_train_batch_end(  # Lightning's hook
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count; show only when it is time."""
        self._images += len(batch[0]) * trainer.world_size
        self._batches += 1
        now = self._now()
        if now - self._refreshed < (REFRESH_SECONDS if self.is_terminal else self.line_seconds):
            return
        self._refreshed = now
        self._shown["loss"] = f"{float(outputs['loss']):.4f}"
        self._measure(trainer, now)
        if self.is_terminal:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        else:
            self._tell(trainer)

    def _measure(self, trainer: Trainer, now: float) -> None:
        """Speed and time left."""
        then, images, batches = self._marks[0]
        self._marks.append((now, self._images, self._batches))
        self._shown["images/s"] = f"{(self._images - images) / (now - then):,.1f}"
        left = seconds_left(trainer, (self._batches - batches) / (now - then))
        if left is not None:
            self._shown["left"] = str(timedelta(seconds=round(left)))

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """The epoch and its bar; Lightning's own times and speeds would leave no room for ours."""
        return [TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()]

    def _tell(self, trainer: Trainer) -> None:
        """A line, by one of the processes."""
        if trainer.is_global_zero:
            logger.info("%s", self._line(trainer))

    def _line(self, trainer: Trainer) -> str:
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs}"
        shown = " · ".join(f"{name} {value}" for name, value in self._figures().items())
        return f"epoch {trainer.current_epoch + 1}{last} · step {trainer.global_step:,} · {shown}"

    def _figures(self) -> dict[str, str]:
        """What is shown, first the time since training began, held-out images included."""
        elapsed = timedelta(seconds=round(time.perf_counter() - self._began))
        return {"elapsed": str(elapsed), **self._shown}

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """What the bar shows."""
        return dict(self._figures())


def seconds_left(trainer: Trainer, batches_per_second: float) -> float | None:
    """Until the run's budget is used up, by steps or by the clock, 0 or more; None if it has none.

    Args:
        trainer: In training.
        batches_per_second: Batches, not optimiser steps, a second.
    """
    batches = batches_left(trainer)
    left = batches / batches_per_second if batches != float("inf") else None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the callback connector
        if isinstance(callback, Timer):
            remaining = callback.time_remaining()
            if remaining is not None:
                left = remaining if left is None else min(left, remaining)
    return None if left is None else max(0.0, left)
