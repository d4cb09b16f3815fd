"""Averaged weights that are worth something after a hundred steps, too, judged beside the newest ones."""

from __future__ import annotations

import logging
from copy import deepcopy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning_utilities.core.apply_func import apply_to_collection

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

logger = logging.getLogger(__name__)


class WarmAveraging(WeightAveraging):
    """An exponential moving average of weights and buffers, taken every step, whose decay warms up.

    After step t the average keeps min(decay, (1 + t) / (10 + t)) of itself. With the full decay from the start, a short
    run's average would be that of its first, untrained steps: 0.999 still holds 90 % of them after a hundred.

    Held-out images are counted with the average, which the checkpoints keep, and with the newest weights: of these the
    metric that chooses the checkpoint is logged as ``val/newest_NAME``, and the end says so if they are better.

    Args:
        decay: The share it keeps in the end, 0 to 1.

    Raises:
        ValueError: A decay out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"expected 0 < ema < 1, got ema={decay}")
        super().__init__(avg_fn=partial(average, decay=decay))
        self._last: Any = None

    def _newest(self, trainer: Trainer) -> Any:
        """While held-out images are counted in training, or after it: the task with the newest weights."""
        task: Any = self._last
        if task is None and self._average_model is not None and trainer.state.fn == "fit":
            task = self._average_model.module
        if not hasattr(task, "measure"):
            return None
        task.trainer = trainer  # by which a task tells whose loaders the images come from
        return task.eval()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from nothing on with the newest weights, too."""
        super().on_validation_epoch_start(trainer, pl_module)
        newest = self._newest(trainer)
        if newest is not None:
            newest.begin("val")

    @torch.no_grad()
    def on_validation_batch_end(  # Lightning's hook
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch with the newest weights, too."""
        newest = self._newest(trainer)
        if newest is not None:
            own, running = (next(task.parameters()).dtype for task in (newest, pl_module))
            if own == running:
                with trainer.precision_plugin.forward_context():
                    newest.measure("val", batch)
            else:  # of "bf16-true" or "64-true", which convert the task after averages were begun in 32 bits
                newest.measure(
                    "val",
                    apply_to_collection(
                        batch, torch.Tensor, lambda each: each.to(own) if each.is_floating_point() else each
                    ),
                )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the newest weights' metric, and put them back."""
        newest = self._newest(trainer)
        if newest is not None:
            name = str(newest.monitor).removeprefix("val/")
            pl_module.log(f"val/newest_{name}", newest.figures("val")[name], sync_dist=True)
        super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the average, and the newest weights for a last round of held-out images."""
        if self._average_model is not None:
            self._last = deepcopy(self._average_model.module)
            self._last.load_state_dict(pl_module.state_dict())
        super().on_train_end(trainer, pl_module)

    def tell(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say, after training, where the newest weights are better than the average that was kept."""
        monitor = str(getattr(pl_module, "monitor", ""))
        names = (monitor, monitor.replace("val/", "val/newest_"))
        kept, newest = (trainer.callback_metrics.get(name) for name in names)
        if kept is not None and newest is not None and newest > kept:
            told = "the newest weights have %s %.3f, their average, which is kept, %.3f; --ema null trains without it"
            logger.info(told, monitor, float(newest), float(kept))


def go_on_without(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Training that goes on without averages takes up the newest weights, which the optimiser's state belongs to.

    Args:
        checkpoint: What is about to be loaded; its ``state_dict``, the average, is exchanged.
        trainer: That loads it.
    """
    newest = checkpoint.get("current_model_state")
    averages = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if newest is not None and trainer.state.fn == "fit" and not averages:
        checkpoint["state_dict"] = newest
        logger.info("goes on from the checkpoint's newest weights, without their average, which --ema would keep up")


def average(kept: Tensor, current: Tensor, steps: Tensor | int, decay: float) -> Tensor:
    """The average after one step more.

    Args:
        kept: The average so far, any shape.
        current: The weights of the newest step, same shape.
        steps: Steps that are in the average, >= 1.
        decay: See `WarmAveraging`.

    Returns:
        Same shape.
    """
    warm = (1 + steps) / (10 + steps)
    share = min(decay, warm) if isinstance(warm, float) else warm.clamp(max=decay)  # stays where it is: no waiting
    return current + share * (kept - current)  # exact for what is frozen
