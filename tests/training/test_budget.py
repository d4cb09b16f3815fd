"""The schedule of a run whose steps gather another number of batches in each epoch."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from castvision.training import SegmentationTask
from castvision.training.callbacks.progress import seconds_left
from castvision.training.optim import Schedule
from tests.training.conftest import TINY_VIT, ShuffledNoiseDataModule

STEPS = (16, 8, 4, 4)
"""Of 16 batches in each of four epochs, gathered by 1, 2, 4 and 4."""


class Watch(Callback):
    """The rate of each step, and the batches that are left after each one."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.left: list[float] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.left.append(seconds_left(trainer, 1.0))


def run(folder, path=None):
    torch.manual_seed(0)
    task = SegmentationTask("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT)
    watch = Watch()
    callbacks = [GradientAccumulationScheduler({1: 2, 2: 4}), watch]
    if path is None:
        callbacks.append(ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=2))
    trainer = Trainer(
        max_epochs=4, limit_val_batches=0, callbacks=callbacks, enable_checkpointing=path is None, logger=False,
        enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(task, datamodule=ShuffledNoiseDataModule(train_length=64), ckpt_path=path, weights_only=True)
    return task.state_dict(), watch


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_rates_follow_the_steps_of_all_epochs_and_resumes_keep_them(tmp_path):
    """Lightning's estimate is of the current epoch: rates jumped where it changed, and were others after a resume."""
    whole, watch = run(tmp_path)
    highest = torch.optim.AdamW([torch.zeros(1)]).defaults["lr"]
    planned = [highest * Schedule().factor((step + 0.5) / sum(STEPS)) for step in range(sum(STEPS))]
    assert watch.rates == pytest.approx(planned)
    assert watch.left == [*range(63, -1, -1)]
    for step in (4, 16, 20, 26):  # inside an epoch, at its end, and in those that gather more
        again, _ = run(tmp_path, tmp_path / f"step={step}.ckpt")
        assert all(torch.equal(again[name], value) for name, value in whole.items()), step
