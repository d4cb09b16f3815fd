"""Random numbers of the model and of mixing that depend on the run's seed and the number of the batch alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback

from castvision.training.randomness import seed_all

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer


class StepSeeds(Callback):
    """Seed all generators before each training batch, each process its own.

    A resumed run then draws what an uninterrupted one draws, on every device, and how many numbers loaders and held-out
    images draw makes no difference.
    """

    def __init__(self) -> None:
        self.seed: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """The run's seed, which a resumed part takes over."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See `state_dict`."""
        self.seed = state_dict["seed"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new run's seed is what the process was seeded with."""
        if self.seed is None:
            self.seed = torch.initial_seed()

    def on_train_batch_start(  # Lightning's hook
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed by the number of the batch."""
        seed_all(int(self.seed or 0), trainer.fit_loop.total_batch_idx, trainer.global_rank)
