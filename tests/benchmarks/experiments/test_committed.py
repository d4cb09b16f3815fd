"""Each committed experiment trains a step, under each of its settings."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import yaml

from benchmarks.experiments.definition import load_experiments
from castvision_cli import train as cli
from castvision_cli.train import config_folder

RESULTS = config_folder().parent / "results"
PAIRS = [(each, setting) for each in load_experiments(RESULTS) for setting in each.settings]


def _write_fashion(root):
    """Files like torchvision's and Debian's: 28 x 28 pixels, ten classes."""
    raw = root / "data/FashionMNIST/raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 400), ("t10k", 40)):
        images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + labels.tobytes())


def _is_fast(experiment, setting):
    return (experiment.name, setting) == ("fashion_mnist", "near_far")  # the others' parts are met elsewhere


@pytest.mark.parametrize(
    ("experiment", "setting"),
    [
        pytest.param(
            each, setting, id=f"{each.name}-{setting}", marks=[] if _is_fast(each, setting) else pytest.mark.slow
        )
        for each, setting in PAIRS
    ],
)
def test_a_step(experiment, setting, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in experiment.needs:
        assert path.startswith("data/FashionMNIST/raw/")
        _write_fashion(tmp_path)
        assert (tmp_path / path).is_file()
    run = next(run for run in experiment.runs() if run.setting == setting)
    config = run.config(1)
    config["trainer"] |= {"limit_val_batches": 1, "limit_test_batches": 1, "accelerator": "cpu"}
    config["data"]["init_args"]["batch_size"] = 4
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", "config.yaml", "--run_dir", "run"]
    assert cli.main(["fit", *words]) == 0 and cli.main(["test", *words]) == 0
    figures = json.loads((tmp_path / "run/test_metrics.json").read_text())["figures"]
    assert f"test/{experiment.metric}" in figures
