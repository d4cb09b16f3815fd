"""A signal ends training at the end of a step, with a checkpoint from which it goes on exactly."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer

STOPPED, INTERRUPTED = 128 + signal.SIGTERM, 128 + signal.SIGINT
"""Exit codes: 143 after SIGTERM and SIGUSR1 (Slurm's ``--signal``), 130 after Ctrl-C."""

_VALIDATION = "epoch_loop.val_loop.batch_progress"
_GRADIENTS = "accumulated_gradients"


class Interruption(Callback):
    """Stop on SIGTERM, SIGUSR1 and SIGINT where nothing is half done.

    Lightning's own handlers stop, or even save, where gradients have been accumulated and not been used, and a saved
    round of held-out images would lose those already counted. Here training goes on to the next optimiser step; a round
    of held-out images is broken off, and a resumed run counts them all. A second Ctrl-C stops at once, without saving.

    Args:
        path: Of the checkpoint; None = none is written.

    Attributes:
        signal: The number of the signal that came first, or None.
        saved_step: The step of the newest checkpoint written.
        has_begun: Whether all that a checkpoint holds has been taken over, and training begins.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.signal: int | None = None
        self.saved_step = -1
        self.has_begun = False
        self._is_broken_off = False
        self._common_batches = 0.0
        self._gradients: dict[str, Any] = {}
        self._handlers: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """What a process that was stopped returns."""
        return STOPPED if self.signal not in (None, signal.SIGINT) else INTERRUPTED

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, and what was accumulated from the checkpoint."""
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._handlers[number] = signal.signal(number, self._take)
        if trainer.received_sigterm:  # while data were set up
            self.signal = signal.SIGTERM
            trainer._signal_connector.received_sigterm = False
        for name, parameter in pl_module.named_parameters():
            if name in self._gradients:
                parameter.grad = self._gradients[name].to(parameter)
        self._gradients = {}
        self.has_begun = True

    def _take(self, number: int, _: Any) -> None:
        if number == signal.SIGINT:
            if self.signal == signal.SIGINT:
                raise KeyboardInterrupt
            # NOTE: straight to the file: a handler may come in the middle of another line of Python's stream.
            os.write(2, b"\nstopping at the end of this step; Ctrl-C once more stops at once, without saving\n")
        if self.signal is None or number == signal.SIGINT:
            self.signal = number

    def _is_asked(self, trainer: Trainer) -> bool:
        """Whether any process got a signal: all must stop at the same step, and say the same."""
        if trainer.world_size > 1:
            own = torch.tensor(float(self.signal or 0), device=trainer.strategy.root_device)
            self.signal = int(trainer.strategy.reduce(own, reduce_op="max")) or None
        return self.signal is not None

    def on_train_batch_end(  # Lightning's hook
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let Lightning stop once this step has been logged, unless it only accumulates."""
        if self._is_asked(trainer) and not trainer.fit_loop._should_accumulate():
            trainer._signal_connector.received_sigterm = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask how many batches all processes have; a repeated round leaves no mark of the one that was broken off."""
        own = torch.tensor(float(sum(trainer.num_val_batches)), device=trainer.strategy.root_device)
        self._common_batches = float(trainer.strategy.reduce(own, reduce_op="min"))
        total: Any = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        if total.processed != total.ready:
            total.reset()

    def on_validation_batch_start(  # Lightning's hook
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Break off a round of held-out images."""
        is_common = batch_idx < self._common_batches  # processes ask each other, and one may have a batch more
        if trainer.state.fn == "fit" and not trainer.sanity_checking and is_common and self._is_asked(trainer):
            self._is_broken_off = True
            raise SIGTERMException

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what a stop found in order."""
        try:
            if isinstance(exception, SIGTERMException) and self.path is not None:
                self._save(trainer, pl_module, self.path)
        finally:
            self._give_back()

    def _save(self, trainer: Trainer, pl_module: LightningModule, path: Path) -> None:
        if self._is_broken_off:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by the callback connector
                if isinstance(callback, WeightAveraging):  # the averages stand in the model's place; nothing to log
                    WeightAveraging.on_validation_epoch_end(callback, trainer, pl_module)
        if self.saved_step != trainer.global_step:
            trainer.save_checkpoint(path)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is over: signals do again what they did before."""
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add gradients that wait for their step, and the mark of a round of held-out images that is to be repeated."""
        self.saved_step = trainer.global_step
        if trainer.fit_loop._should_accumulate():
            named = pl_module.named_parameters()
            checkpoint[_GRADIENTS] = {name: each.grad for name, each in named if each.grad is not None}
        if self._is_broken_off:
            begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0}  # as Lightning marks it
            checkpoint["loops"]["fit_loop"][_VALIDATION] |= {"total": begun, "current": begun}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep gradients that wait for their step."""
        self._gradients = checkpoint.get(_GRADIENTS, {})
