"""The steps that a run takes; batches of a step may change from epoch to epoch (``GradientAccumulationScheduler``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def batches_a_step(trainer: Trainer, epoch: int) -> int:
    """Batches that a step of an epoch gathers; ``trainer.accumulate_grad_batches`` is that of the current one."""
    scheduler = _scheduler(trainer)
    return trainer.accumulate_grad_batches if scheduler is None else scheduler.get_accumulate_grad_batches(epoch)


def steps_in(trainer: Trainer, batches: int, epochs: int) -> int:
    """Steps of so many epochs from the first one on.

    Args:
        trainer: What gathers batches.
        batches: Of an epoch.
        epochs: Their number.
    """
    scheduler = _scheduler(trainer)
    starts = [epoch for epoch in ([0] if scheduler is None else scheduler.epochs) if epoch < epochs]
    return sum(
        (end - start) * math.ceil(batches / batches_a_step(trainer, start))
        for start, end in zip(starts, [*starts[1:], epochs], strict=False)
    )


def planned_steps(trainer: Trainer) -> float:
    """Steps of the whole run, as far as they are limited by steps or epochs; infinity if they are not.

    Lightning's own estimate takes the current epoch's batches of a step for those of all.
    """
    total = trainer.estimated_stepping_batches  # which also makes loaders ready
    if _scheduler(trainer) is None or trainer.max_epochs in (None, -1):
        return total
    batches = trainer.num_training_batches
    if not math.isfinite(batches):
        return total
    steps = steps_in(trainer, int(batches), max(trainer.max_epochs, 1))
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def share_used(trainer: Trainer, steps: float, others: int = 0) -> float:
    """Share of the budget: of the planned steps, or of ``max_time`` if that runs out first.

    Args:
        trainer: With the budget.
        steps: Taken so far.
        others: See `take_up`.
    """
    total = planned_steps(trainer)
    share = steps / (total + others) if total not in (0, float("inf")) else 0.0
    for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the callback connector
        if isinstance(callback, Timer) and callback._duration is not None:
            share = max(share, callback.time_elapsed() / callback._duration)
    return share


def batches_left(trainer: Trainer) -> float:
    """Batches until the planned steps are done; infinity where none are planned."""
    if _scheduler(trainer) is None or trainer.max_steps != -1 or trainer.max_epochs in (None, -1):
        return (planned_steps(trainer) - trainer.global_step) * trainer.accumulate_grad_batches
    done = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    return trainer.num_training_batches * (trainer.max_epochs - trainer.current_epoch) - done


def take_up(trainer: Trainer) -> int:
    """Gather the batches of the epoch that a run begins or goes on with: Lightning does so where one begins only.

    Args:
        trainer: At the start of training.

    Returns:
        How many more steps a run that goes on has taken than its batches make in as many epochs: they were others.
    """
    trainer.accumulate_grad_batches = batches_a_step(trainer, trainer.current_epoch)
    batches = trainer.num_training_batches
    if trainer.max_steps != -1 or not math.isfinite(batches):
        return 0
    done = trainer.current_epoch
    progress, gathered = trainer.fit_loop.epoch_loop.batch_progress, trainer.accumulate_grad_batches
    epochs: Any = trainer.fit_loop.epoch_progress.current  # of a subclass that its type does not say
    an_epoch = math.ceil(batches / gathered)
    inside = an_epoch if progress.is_last_batch else min(progress.current.ready // gathered, an_epoch)
    if epochs.started == epochs.completed:  # a checkpoint of an epoch's very end counts it among those before
        inside = 0
    return trainer.global_step - steps_in(trainer, int(batches), done) - inside


def _scheduler(trainer: Trainer) -> GradientAccumulationScheduler | None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by the callback connector
    return next((each for each in callbacks if isinstance(each, GradientAccumulationScheduler)), None)
