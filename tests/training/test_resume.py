"""A run that is stopped and goes on ends with the bits of one that was not, wherever and however it is stopped."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from castvision.run_folder import forget_after, log_parts
from castvision.training import SegmentationTask
from castvision.training.callbacks.report import Report
from castvision.training.optim import Schedule
from castvision_cli import train as cli
from tests.training.conftest import TINY_VIT, ShuffledNoiseDataModule, recipe

pytestmark = pytest.mark.usefixtures("no_picture")

CHECKED = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "castvision")
FLAGS = ("--ema", "0.9", "--early_stopping", "9", "--trainer.enable_progress_bar", "false")


@pytest.fixture
def no_picture(monkeypatch):
    """A report's picture takes longer than these runs."""
    monkeypatch.setattr("castvision.training.callbacks.report.save_report", lambda *_: None)


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
    rows = [row for part in log_parts(folder) for row in csv.DictReader(part.read_text().splitlines())]
    return [{name: value for name, value in row.items() if value} for row in rows]


def on_the_board(folder):
    """TensorBoard's rows by name: (step, value), by step: files of one second are read in any order."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    rows = {name: [(row.step, row.value) for row in events.Scalars(name)] for name in events.Tags()["scalars"]}
    return {name: sorted(some, key=lambda row: row[0]) for name, some in rows.items()}


def results(folder):
    content = json.loads((folder / "metrics.json").read_text())
    timed = ("seconds", "cpu_seconds", "images_per_second")
    return {**content, "training": {key: of for key, of in content["training"].items() if key not in timed}}


VAL_PROGRESS = "epoch_loop.val_loop.batch_progress"


def assert_same_run(whole, resumed):
    for name in ("last.ckpt", "best.ckpt"):
        first, second = (torch.load(folder / name, weights_only=True) for folder in (whole, resumed))
        for key in CHECKED:
            assert (key in first) == (key in second) and same(first.get(key), second.get(key)), (name, key)
        assert (first["global_step"], first["epoch"]) == (second["global_step"], second["epoch"])
        loops = [{**each["loops"]["fit_loop"]} for each in (first, second)]
        if name == "best.ckpt":  # resumed at an epoch's last step, Lightning forgets its count of held-out batches
            loops = [{key: value for key, value in each.items() if key != VAL_PROGRESS} for each in loops]
        assert same(*loops)
    assert logged(whole) == logged(resumed)
    assert on_the_board(whole) == on_the_board(resumed)
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


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
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


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_rounds_of_held_out_images_are_broken_off_and_repeated(tmp_path, monkeypatch, workers):
    config = configuration(tmp_path, workers, max_epochs=2, val_check_interval=0.5, accumulate_grad_batches=4)
    assert train(config, tmp_path / "whole") == 0
    folder, held_out = tmp_path / "cut", {"hook": "on_validation_batch_start"}
    assert stopped(monkeypatch, config, folder, (0, 6), **held_out) == 143  # with the gradients of 3 batches waiting
    assert not [process for process in multiprocessing.active_children() if process.daemon]
    assert stopped(monkeypatch, config, folder, (0, 13), "--resume", **held_out) == 143
    assert stopped(monkeypatch, config, folder, (1, 8), "--resume", number=signal.SIGUSR1) == 143
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 7  # not before the next optimiser step
    assert train(config, folder, "--resume") == 0
    assert_same_run(tmp_path / "whole", folder)


def test_two_runs_are_one_whatever_the_number_of_loader_processes(tmp_path):
    for number, workers in enumerate((0, 0, 1, 2)):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert train(configuration(folder, workers, max_epochs=1), folder / "run") == 0
        assert_same_run(tmp_path / "0/run", folder / "run")


class Killed(BaseException):
    """As sudden as SIGKILL for what is on disk."""


@pytest.mark.parametrize(("gathered", "lr"), [(1, 0.002), (2, 0.002), (1, 0.01)])
def test_a_finished_run_goes_on_with_other_batches_and_rates(tmp_path, gathered, lr):
    """The third epoch is the last third of the schedule, or what its steps are of all; none are at rate 0."""
    assert train(configuration(tmp_path), tmp_path / "first", "--trainer.max_epochs", "2") == 0
    done = torch.load(tmp_path / "first/last.ckpt", weights_only=True)["global_step"]
    flags = ["--trainer.max_epochs", "3", "--trainer.accumulate_grad_batches", str(gathered), "--model.optimizer.lr"]
    again = ["--ckpt_path", str(tmp_path / "first/last.ckpt"), *flags, str(lr)]
    assert train(configuration(tmp_path), tmp_path / "second", *again) == 0
    rates = [float(row["train/lr"]) for row in logged(tmp_path / "second") if "train/lr" in row]
    steps = torch.load(tmp_path / "second/last.ckpt", weights_only=True)["global_step"] - done
    schedule = Schedule(**recipe("pixel")["model"]["init_args"].get("schedule", {}))
    assert steps * gathered in (done // 2, done // 2 + gathered - 1)
    assert min(rates) > 0
    assert rates[0] == pytest.approx(lr * schedule.factor((done + 0.5) / (done + steps)))


@pytest.mark.parametrize(("before", "after"), [("balanced", [1.0, 5.0]), ([1.0, 5.0], None), (None, "balanced")])
def test_a_run_goes_on_with_the_class_weights_it_is_given(tmp_path, before, after):
    """Those of the checkpoint were used in silence, or it was called malformed."""
    first, second = ["--model.class_weights", str(before)], ["--model.class_weights", str(after)]
    first, second = ([word.replace("None", "null") for word in words] for words in (first, second))
    assert train(configuration(tmp_path), tmp_path / "first", "--trainer.max_epochs", "1", *first) == 0
    again = ["--trainer.max_epochs", "2", "--ckpt_path", str(tmp_path / "first/last.ckpt")]
    assert train(configuration(tmp_path), tmp_path / "second", *again, *second) == 0
    saved = torch.load(tmp_path / "second/last.ckpt", weights_only=True)
    for state in (saved["state_dict"], saved["current_model_state"]):
        found = state.get("losses.class_weights")
        assert (found is None) == (after is None)
        assert after is None or (found.tolist() == after) == (after != "balanced")


@pytest.mark.parametrize("change", ["--model.optimizer=SGD", "--model.freeze=[backbone]", "--model.layer_decay=0.5"])
def test_another_optimizer_than_the_checkpoints_is_refused(tmp_path, change, capsys):
    """SGD ended in 'momentum', the others in torch's words."""
    assert train(configuration(tmp_path), tmp_path / "first", "--trainer.max_epochs", "1") == 0
    again = ["--trainer.max_epochs", "2", "--ckpt_path", str(tmp_path / "first/last.ckpt"), change]
    if "SGD" in change:
        again += ["--model.optimizer.lr", "0.01"]
    assert train(configuration(tmp_path), tmp_path / "second", *again) == 1
    assert "expected to go on with the optimizer of the checkpoint, got" in " ".join(capsys.readouterr().err.split())


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize("gathered", [1, 2])
@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize(
    "when",
    [{"every_n_epochs": 2, "save_on_train_epoch_end": True}, {"every_n_epochs": 2}, {"every_n_train_steps": 8}],
    ids=["epoch", "default", "step"],
)
def test_checkpoints_of_an_epochs_end_go_on_by_the_same_schedule(tmp_path, when, held_out, gathered):
    """Lightning's own: their last epoch was counted twice, and the rate came to 0 before a run's last epochs."""

    def run(path=None):
        torch.manual_seed(0)
        task = SegmentationTask("vit_tiny_patch16_224", 2, model_kwargs=TINY_VIT)
        saving = ModelCheckpoint(tmp_path / "saved", "{step}", save_top_k=-1, **when)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        trainer = Trainer(
            max_epochs=4, accumulate_grad_batches=gathered, limit_val_batches=None if held_out else 0,
            callbacks=[] if path else [saving], enable_checkpointing=path is None, **quiet,
        )  # fmt: skip
        data = ShuffledNoiseDataModule(train_length=4 * 4 * gathered)
        trainer.fit(task, datamodule=data, ckpt_path=path, weights_only=True)
        return task.state_dict()

    whole = run()
    assert same(run(tmp_path / "saved/step=8.ckpt"), whole)


def test_rows_after_the_checkpoint_are_logged_once(tmp_path, monkeypatch):
    """Killed five steps after a checkpoint: those steps are trained, and logged, anew."""
    config = configuration(tmp_path, max_epochs=2)
    assert train(config, tmp_path / "whole") == 0
    original = Report.on_train_batch_end

    def die(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == 20:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Report, "on_train_batch_end", die)
        with pytest.raises(Killed):
            train(config, tmp_path / "cut")
    assert len(logged(tmp_path / "cut")) == 15 + 1 + 4
    assert max(step for rows in on_the_board(tmp_path / "cut").values() for step, _ in rows) == 18
    assert train(config, tmp_path / "cut", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_killed_before_the_report(tmp_path, monkeypatch):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may start without
    config = configuration(tmp_path, max_epochs=1)
    assert train(config, tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Report, "write", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        assert train(config, tmp_path / "cut") == 130
    assert train(config, tmp_path / "cut", "--resume") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_second_control_c_does_not_wait(tmp_path, monkeypatch):
    config = configuration(tmp_path, max_epochs=1)
    original = Report.on_train_batch_end

    def twice(self, trainer, *rest):
        original(self, trainer, *rest)
        for _ in range(2 * (trainer.global_step == 4)):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Report, "on_train_batch_end", twice)
    assert train(config, tmp_path / "cut") == 130
    assert not (tmp_path / "cut/last.ckpt").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_only_later_rows_are_forgotten(tmp_path):
    part = tmp_path / "logs/version_0/metrics.csv"
    part.parent.mkdir(parents=True)
    part.write_text("step,train/loss,val/loss\n3,0.5,\n4,,0.25\n5,0.125,\n")
    forget_after(tmp_path, 5)
    assert part.read_text().split() == ["step,train/loss,val/loss", "3,0.5,", "4,,0.25"]
    before = part.stat().st_mtime_ns
    forget_after(tmp_path, 5)
    assert part.stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_fifty_kills_lose_at_most_an_interval_each():
    script = Path(__file__).parents[2] / "tools/kill_training.py"
    done = subprocess.run([sys.executable, script, "--kills", "50"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "50 kills" in done.stdout
