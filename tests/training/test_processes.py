"""Several processes train what one would, share every image out once, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from castvision.training.data import resumable
from castvision.training.data.resumable import HeldOutSampler, ShuffledSampler
from castvision.training.processes import check_processes, is_lost_process
from castvision_cli import train as cli
from tests.training.conftest import recipe
from tests.training.ddp_launch import SIGNAL_AT
from tests.training.test_resume import logged

LAUNCH = Path(__file__).with_name("ddp_launch.py")
TWO = ("--trainer.strategy", "ddp", "--trainer.devices", "2")


def shares(monkeypatch, make, processes):
    """The indices of each of the processes."""
    found = []
    for rank in range(processes):
        monkeypatch.setattr(resumable, "world", lambda rank=rank: (processes, rank))
        sampler = make()
        found.append(list(sampler))
        assert len(sampler) == len(found[-1])
    return found


@pytest.mark.parametrize(("images", "processes"), [(41, 2), (40, 2), (7, 3), (3, 3)])
def test_held_out_images_are_counted_once(monkeypatch, images, processes):
    found = shares(monkeypatch, lambda: HeldOutSampler(range(images)), processes)
    assert sorted(index for share in found for index in share) == list(range(images))
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_training_images_are_shared_out_in_equal_parts(monkeypatch):
    found = shares(monkeypatch, lambda: ShuffledSampler(range(41), seed=3), 2)
    assert [len(share) for share in found] == [20, 20]
    assert len(set(found[0]) | set(found[1])) == 40
    monkeypatch.setattr(resumable, "world", lambda: (1, 0))
    (alone,) = shares(monkeypatch, lambda: ShuffledSampler(range(41), seed=3), 1)
    assert alone[:40:2] == found[0] and alone[1:41:2] == found[1]  # so a step sees the images that one process sees
    assert len(alone) == 41


def test_fewer_held_out_images_than_processes(monkeypatch):
    monkeypatch.setattr(resumable, "world", lambda: (3, 0))
    with pytest.raises(ValueError, match="at least as many held-out images as processes, got 2 for 3"):
        HeldOutSampler(range(2))


def trainer(device: str = "cpu", devices: int = 2, nodes: int = 1):
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(num_nodes=nodes, num_devices=devices, strategy=strategy)


def test_machines_that_nothing_starts_together_are_not_waited_for(monkeypatch):
    for name in ("MASTER_ADDR", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "LSB_JOBID", "KUBERNETES_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"expected 3 machines to be started together.*torchrun or SLURM"):
        check_processes(trainer(nodes=3), nn.Linear(2, 2), "fit", sync_batchnorm=False)
    monkeypatch.setenv("MASTER_ADDR", "node0")
    check_processes(trainer(nodes=3), nn.Linear(2, 2), "fit", sync_batchnorm=False)


def test_what_processes_would_not_share_is_refused():
    plain, normalised = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"one process for predict.*got 2; set trainer.devices: 1"):
        check_processes(trainer(), plain, "predict", sync_batchnorm=False)
    for shared in (False, True):  # torch has no shared statistics on CPUs
        with pytest.raises(ValueError, match=r"without batch normalisation in several processes on CPUs, got 1:"):
            check_processes(trainer(), normalised, "fit", sync_batchnorm=shared)
    with pytest.raises(ValueError, match=r"trainer\.sync_batchnorm: true"):
        check_processes(trainer("cuda"), normalised, "fit", sync_batchnorm=False)
    check_processes(trainer("cuda"), normalised, "fit", sync_batchnorm=True)
    check_processes(trainer(), normalised, "validate", sync_batchnorm=False)
    check_processes(trainer(devices=1), normalised, "fit", sync_batchnorm=False)
    check_processes(trainer(), plain, "fit", sync_batchnorm=False)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_cpu_offload"])
def test_sharded_weights_on_a_cpu_are_refused(write_config, tmp_path, capsys, strategy):
    words = ["--config", write_config(), "--run_dir", str(tmp_path / "run"), "--trainer.strategy", strategy]
    assert cli.main(words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "GPU" in told
    assert not (tmp_path / "run").exists()


def test_a_lost_process_is_recognised():
    gloo = "[/third_party/gloo/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]:22942: Connection reset by peer."
    assert is_lost_process(RuntimeError(gloo))
    assert is_lost_process(torch.distributed.DistBackendError("NCCL"))
    assert not is_lost_process(RuntimeError("shape '[2]' is invalid"))


def configuration(folder, **trainer):
    """float64: Adam makes steps of a gradient that is zero but for rounding as large as of any other."""
    content = recipe("image")
    content["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.001
    content["data"] = {"class_path": "tests.training.ddp_launch.OddNoiseDataModule", "init_args": {"batch_size": 4}}
    content["trainer"] |= {"log_every_n_steps": 1, "max_epochs": 5, "precision": "64-true", **trainer}
    path = folder / "odd.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def train(config, folder, *words, **environment):
    root = str(Path(__file__).parents[2])
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]), **environment}
    line = [sys.executable, LAUNCH, "--config", config, "--run_dir", folder, *words]
    done = subprocess.run(line, check=False, env=variables, capture_output=True, text=True, timeout=240)
    assert "sync_dist" not in done.stderr, done.stderr
    return done.returncode, done.stderr


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def results(folder):
    return json.loads((folder / "metrics.json").read_text())


def assert_same_run(one, two, tolerance=1e-5):
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < tolerance
    first, second = results(one), results(two)
    assert first["confusion"] == second["confusion"]
    assert sum(map(sum, second["confusion"])) == 41
    assert first["best"] == pytest.approx(second["best"], abs=tolerance)
    assert first["training"]["images"] == second["training"]["images"]
    rows = [[float(row["train/loss"]) for row in logged(run) if "train/loss" in row] for run in (one, two)]
    assert rows[0] == pytest.approx(rows[1], abs=tolerance)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    """60 steps of 8 images, 4 by each of two; then again with one of the two killed in the middle, and resumed."""
    config = configuration(tmp_path)
    assert train(config, tmp_path / "one", "--data.batch_size", "8")[0] == 0
    code, told = train(config, tmp_path / "two", *TWO)
    assert code == 0, told
    assert results(tmp_path / "two")["training"]["steps"] == 60
    assert "100 training and 41 held-out images" in told and "12 steps an epoch, 60 steps in all" in told
    assert_same_run(tmp_path / "one", tmp_path / "two")
    code, told = train(config, tmp_path / "cut", *TWO, **{SIGNAL_AT: f"{signal.SIGKILL.value}@30"})
    assert code == 1 and "another process of the run has ended" in told.splitlines()[-1], told
    code, told = train(config, tmp_path / "cut", *TWO, "--resume")
    assert code == 0, told
    assert_same_run(tmp_path / "one", tmp_path / "cut")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_and_averages_are_shared(tmp_path):
    config = configuration(tmp_path)
    words = (*TWO, "--ema", "0.9")
    code, told = train(config, tmp_path / "whole", *words)
    assert code == 0, told
    code, told = train(config, tmp_path / "cut", *words, **{SIGNAL_AT: f"{signal.SIGTERM.value}@17"})
    assert code == 143, told
    assert torch.load(tmp_path / "cut/last.ckpt", weights_only=True)["global_step"] == 17
    assert told.splitlines()[-1].endswith("--resume") and told.count("--resume") == 1
    code, told = train(config, tmp_path / "cut", *words, "--resume")
    assert code == 0, told
    assert_same_run(tmp_path / "whole", tmp_path / "cut", 1e-12)
