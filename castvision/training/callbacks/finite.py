"""Training stops where its numbers stop being numbers, instead of finishing with a report of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from castvision.files import draft

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import LightningModule, Trainer

BATCH = "nonfinite_batch.pt"


class NonFiniteError(ValueError):
    """A loss or a weight is NaN or infinite."""


class StopWhereNotFinite(Callback):
    """Looks at the loss of every step, and at the weights before held-out images are counted and at the end.

    A scaler of gradients (16-mixed) skips steps with infinite gradients by itself: those are no error.

    Args:
        folder: Where the batch of the step is saved, as ``torch.load`` reads it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refuse to go on after a step whose loss is not finite.

        Raises:
            NonFiniteError: With the step, where its batch is, and the likely cause.
        """
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if loss is None or bool(torch.isfinite(loss).all()):
            return
        where = self.folder / BATCH
        with draft(where) as temporary:
            torch.save(batch if isinstance(batch, dict) else list(batch), temporary)  # no class of ours in it
        raise NonFiniteError(
            f"the loss of step {trainer.global_step} is {float(loss)}: {_cause(batch, pl_module, trainer)}; "
            f"its batch is in {str(where)!r}"
        )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to count images with weights that are not finite: every metric would be one of nothing.

        Raises:
            NonFiniteError: With the name of the first.
        """
        self._check_weights(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As `on_validation_start`."""
        self._check_weights(trainer, pl_module)

    @staticmethod
    def _check_weights(trainer: Trainer, pl_module: LightningModule) -> None:
        name = _first_not_finite(pl_module)
        if name is not None:
            raise NonFiniteError(
                f"the weights are not finite after step {trainer.global_step}, such as {name}; {_remedy(trainer)}"
            )


def _first_not_finite(module: LightningModule) -> str | None:
    return next((name for name, value in module.named_parameters() if not bool(torch.isfinite(value).all())), None)


def _cause(batch: Any, module: LightningModule, trainer: Trainer) -> str:
    """The likely one."""
    image = batch.get("image") if isinstance(batch, dict) else batch[0]
    if isinstance(image, torch.Tensor) and not bool(torch.isfinite(image).all()):
        return "its images hold NaN or infinite pixels; declare them as no data"
    name = _first_not_finite(module)
    return f"{'the weights are not finite, such as ' + name if name else 'the logits overflowed'}; {_remedy(trainer)}"


def _remedy(trainer: Trainer) -> str:
    rate = max(group["lr"] for group in trainer.optimizers[0].param_groups) if trainer.optimizers else None
    told = "" if rate is None else f" (now {rate:.3g})"
    return f"lower optimizer.lr{told}, set trainer.gradient_clip_val, or use a wider trainer.precision"
