"""Callbacks of the user's beside the run's own."""

from __future__ import annotations

import pytest

from castvision_cli import train as cli

SAVING = "lightning.pytorch.callbacks.ModelCheckpoint"
STOPPING = "lightning.pytorch.callbacks.EarlyStopping"


def train(config, run_dir, *words):
    return cli.main(["--config", config, "--run_dir", str(run_dir), "--trainer.max_epochs", "1", *words])


def test_a_metric_that_is_not_there_is_said_before_the_first_step(write_config, tmp_path, capsys):
    words = ("--trainer.callbacks", STOPPING, "--trainer.callbacks.monitor", "val/miuo")
    assert train(write_config(), tmp_path / "run", *words) == 1
    assert "no metric 'val/miuo' for EarlyStopping.monitor: did you mean val/miou?" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.ckpt"))


def test_every_epoch_may_be_saved_beside_the_last(write_config, tmp_path):
    every = {"class_path": SAVING, "init_args": {"save_top_k": -1, "dirpath": str(tmp_path / "all")}}
    words = ("--trainer.callbacks", str([every]), "--trainer.max_epochs", "2")
    assert train(write_config(), tmp_path / "run", *words) == 0
    assert len(list((tmp_path / "all").glob("*.ckpt"))) == 2
    assert {"best.ckpt", "last.ckpt"} <= {path.name for path in (tmp_path / "run").iterdir()}


def test_one_that_saves_what_the_runs_own_saves_is_refused(write_config, tmp_path, capsys):
    same = {"class_path": SAVING, "init_args": {"monitor": "val/miou", "mode": "max", "save_top_k": 3}}
    assert train(write_config(), tmp_path / "run", "--trainer.callbacks", str([same])) == 2
    assert "expected one ModelCheckpoint for a metric and an interval, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["TQDMProgressBar", "RichProgressBar"])
def test_another_progress_bar_takes_the_place_of_ours(name, write_config, tmp_path):
    assert train(write_config(), tmp_path / "run", "--trainer.callbacks", name, "--trainer.limit_val_batches", "1") == 0


def test_the_training_loss_may_be_monitored_in_epochs_shorter_than_the_loggers_steps(write_config, tmp_path):
    """It was there on the logger's steps only, and the callbacks ended the run."""
    best = {"class_path": SAVING, "init_args": {"monitor": "train/loss", "dirpath": str(tmp_path / "best")}}
    stop = {"class_path": STOPPING, "init_args": {"monitor": "train/loss", "check_on_train_epoch_end": True}}
    words = ("--trainer.callbacks", str([best, stop]), "--trainer.log_every_n_steps", "50")
    assert train(write_config(), tmp_path / "run", *words) == 0
    assert len(list((tmp_path / "best").glob("*.ckpt"))) == 1
