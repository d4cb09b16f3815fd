from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from torch.optim import SGD
from torch.utils.data import DataLoader

from castvision.training import ClassificationTask, SegmentationTask
from castvision.training.callbacks.averaging import WarmAveraging, average
from castvision.training.callbacks.clusters import ClusterStatistics, cluster_metrics


@pytest.mark.parametrize(("steps", "share"), [(1, 2 / 11), (8, 0.5), (89, 90 / 99), (10_000, 0.999)])
@pytest.mark.parametrize("count", [int, torch.tensor])
def test_the_decay_warms_up(steps, share, count):
    """min(decay, (1 + t) / (10 + t)) of what was kept, the rest of what is new."""
    kept, current = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
    averaged = average(kept, current, count(steps), 0.999)
    torch.testing.assert_close(averaged, torch.tensor([share, 2 * (1 - share)]))


class Line(LightningModule):
    """A weight that grows by one each step."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return -self.weight

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.filterwarnings("ignore")
def test_a_hundred_steps_are_followed_from_near_behind(tmp_path):
    """Lightning's own average with 0.999 would stand at 6 after 100 steps; a warm one lags by a tenth of them."""
    model = Line()
    trainer = Trainer(
        max_steps=100, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[WarmAveraging(0.999)],
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(torch.zeros(100)))
    expected = 1.0
    for step in range(1, 100):
        share = (1 + step) / (10 + step)
        expected = share * expected + (1 - share) * (step + 1)
    assert float(model.weight.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > 85


def test_a_decay_out_of_range_is_refused():
    with pytest.raises(ValueError, match="0 < ema < 1"):
        WarmAveraging(1.0)


def loader(target, dtype):
    images = torch.randn(4, 1, 32, 32, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return DataLoader([(image, target(image)) for image in images], batch_size=2)


def run(task, target, *callbacks, dtype=torch.float32):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, callbacks=list(callbacks), **quiet)
    trainer.fit(task, loader(target, dtype), loader(target, dtype))
    return trainer.callback_metrics


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (SegmentationTask, lambda image: (image > 0).float()),
        (ClassificationTask, lambda image: torch.eye(2)[int(image[0, 0, 0] > 0)]),
    ],
)
def test_batches_of_anyones_loader_are_measured_with_both_weights(kind, target):
    """Floats, one-hot classes, images of 64 bits: what the task takes, the newest weights take."""
    task = kind("cast_vit_atto_patch4_32", 2, model_kwargs={"depth": 1})
    assert task.monitor.replace("val/", "val/newest_") in run(task, target, WarmAveraging(0.5), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore")
def test_clusters_are_those_of_the_weights_that_are_kept():
    torch.manual_seed(0)
    task = SegmentationTask("cast_vit_atto_patch4_32", 2, model_kwargs={"depth": 1}, optimizer=partial(SGD, lr=100.0))
    figures = run(task, lambda image: (image > 0).long(), WarmAveraging(0.5), ClusterStatistics())
    kept = cluster_metrics(task.backbone, *next(iter(loader(lambda image: (image > 0).long(), torch.float32))))
    assert kept == pytest.approx({name: float(figures[name]) for name in kept})


@pytest.mark.filterwarnings("ignore")
def test_without_averages_a_run_goes_on_from_its_newest_weights(tmp_path, caplog):
    """The optimiser's state belongs to them; the file's ``state_dict`` is the average, which prediction takes."""

    def fit(epochs, *callbacks, ckpt_path=None):
        task = ClassificationTask(
            "cast_vit_atto_patch4_32", 2, model_kwargs={"depth": 1}, optimizer=partial(SGD, lr=1.0),
        )  # fmt: skip
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=tmp_path,
            callbacks=[LambdaCallback(on_train_start=keep), *callbacks], enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=any(isinstance(x, ModelCheckpoint) for x in callbacks),
        )  # fmt: skip
        trainer.fit(task, loader(lambda image: int(image[0, 0, 0] > 0), torch.float32), ckpt_path=ckpt_path)

    def keep(trainer, module):
        started.update({name: value.clone() for name, value in module.state_dict().items()})

    started: dict[str, torch.Tensor] = {}
    fit(1, WarmAveraging(0.5), ModelCheckpoint(tmp_path, "kept"))
    kept = torch.load(tmp_path / "kept.ckpt", weights_only=False)
    newest, average = kept["current_model_state"], kept["state_dict"]
    assert any(not torch.equal(newest[name], average[name]) for name in newest)
    with caplog.at_level(logging.INFO, logger="castvision"):
        fit(2, ckpt_path=tmp_path / "kept.ckpt")
    assert all(torch.equal(started[name], newest[name]) for name in newest)
    assert "newest weights, without their average" in caplog.text
    fit(2, WarmAveraging(0.5), ckpt_path=tmp_path / "kept.ckpt")
    assert all(torch.equal(started[name], newest[name]) for name in newest)
