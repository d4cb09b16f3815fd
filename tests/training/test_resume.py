"""A run that is stopped and goes on ends with the bits of one that was not, wherever and however it is stopped."""

from __future__ import annotations

import csv
import json
import os
import signal

import pytest
import torch
import yaml

from castvision.training.callbacks.report import Report
from castvision.training.run_folder import forget_after, log_parts
from castvision_cli import train as cli
from tests.training.conftest import recipe

CHECKED = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "castvision")
FLAGS = ("--ema", "0.9", "--early_stopping", "9", "--trainer.enable_progress_bar", "false")


def configuration(folder, workers=0, **trainer):
    content = recipe("pixel")
    content["model"]["init_args"]["model_kwargs"] |= {"proj_drop_rate": 0.1, "drop_path_rate": 0.1}
    content["data"] = {"class_path": "ShuffledNoiseDataModule", "init_args": {"num_workers": workers}}
    content["trainer"] |= {"log_every_n_steps": 1, "max_epochs": 3, **trainer}
    path = folder / "shuffled.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(config, folder, *flags):
    return cli.main(["--config", str(config), "--run_dir", str(folder), *FLAGS, *flags])


def same(first, second):
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def logged(folder):
    """All rows, without the empty cells that another part's columns would fill."""
    rows = [row for part in log_parts(folder) for row in csv.DictReader(part.open(newline=""))]
    return [{name: value for name, value in row.items() if value} for row in rows]


def results(folder):
    content = json.loads((folder / "metrics.json").read_text())
    timed = ("seconds", "images_per_second")
    return {**content, "training": {key: of for key, of in content["training"].items() if key not in timed}}


def assert_same_run(whole, resumed):
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (whole, resumed))
        for key in CHECKED:
            assert (key in first) == (key in second) and same(first.get(key), second.get(key)), (name, key)
        assert (first["global_step"], first["epoch"]) == (second["global_step"], second["epoch"])
        assert same(*({**each["loops"]["fit_loop"]} for each in (first, second)))
    assert logged(whole) == logged(resumed)
    assert results(whole) == results(resumed)


def send(number, moment, hook="on_train_batch_end"):
    """A patch of the report's hook that sends this process a signal once, at ``moment`` = (epoch, batch)."""
    original = getattr(Report, hook, None)
    sent = []

    def patched(self, trainer, module, *rest, **more):
        if original is not None:
            original(self, trainer, module, *rest, **more)
        at = trainer.current_epoch, trainer.fit_loop.batch_idx
        if at == moment and not sent and not trainer.sanity_checking:
            sent.append(at)
            os.kill(os.getpid(), number)

    return patched


def stopped(monkeypatch, config, folder, moment, *flags, number=signal.SIGTERM, hook="on_train_batch_end"):
    with monkeypatch.context() as patch:
        patch.setattr(Report, hook, send(number, moment, hook), raising=False)
        return train(config, folder, *flags)


@pytest.mark.parametrize("workers", [0, 2])
def test_three_signals_in_a_row(tmp_path, monkeypatch, capsys, workers):
    config = configuration(tmp_path, workers)
    assert train(config, tmp_path / "whole") == 0
    folder = tmp_path / "cut"
    assert stopped(monkeypatch, config, folder, (0, 6)) == 143
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 7
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"castvision train: stopped; to go on: castvision train --config {config}")
    assert told.endswith("--resume")
    assert stopped(monkeypatch, config, folder, (1, 14), "--resume") == 143  # the last batch: images are held out next
    assert stopped(monkeypatch, config, folder, (2, 0), "--resume", number=signal.SIGINT) == 130
    assert train(config, folder, "--resume") == 0
    assert len(log_parts(folder)) == 4
    assert_same_run(tmp_path / "whole", folder)
