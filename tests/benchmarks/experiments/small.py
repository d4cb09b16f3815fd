"""A fake experiment whose runs take a few seconds, and rows that nobody trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from benchmarks.experiments.definition import Experiment, Run, load_experiments
from benchmarks.experiments.rows import FORMAT, Rows, steps_at_equal_images

SMALL = {
    "embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 4, "img_size": 32, "in_chans": 1,
}  # fmt: skip
CONTENT: dict[str, Any] = {
    "title": "small: a way through a maze",
    "metric": "iou_way",
    "images": 48,
    "seconds": 0.5,
    "seeds": [0, 1],
    "rounds": 6,
    "subject": "two heads",
    "config": {
        "model": {
            "class_path": "SegmentationTask",
            "init_args": {"model_name": "vit_tiny_patch16_224", "num_classes": 2, "model_kwargs": SMALL},
        },
        "data": {
            "class_path": "MazeDataModule",
            "init_args": {
                "img_size": 32, "train_length": 800, "val_length": 8, "test_length": 8, "batch_size": 4,
                "num_workers": 0,
            },
        },
        "trainer": {"accelerator": "cpu"},
    },
}  # fmt: skip
SETTINGS = {"two heads": None, "one head": {"model_kwargs": {"num_heads": 1}}}


def write_results(folder: Path, **changes: Any) -> Path:
    """A results folder with the experiment ``small``."""
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False))
    (folder / "experiments/small.yaml").write_text(yaml.safe_dump({**CONTENT, **changes}))
    return folder


def load_small(folder: Path) -> tuple[Experiment, Rows]:
    return load_experiments(folder, ["small"])[0], Rows(folder)


def write_row(rows: Rows, run: Run, value: float, **changes: Any) -> dict[str, Any]:
    """A finished row with a metric; 40 images a second."""
    steps = changes.pop("steps", steps_at_equal_images(run.experiment))
    images = steps * run.experiment.batch_size
    row = {
        "format": FORMAT, "experiment": run.experiment.name, "setting": run.setting, "seed": run.seed,
        "budget": run.budget, "budget_seconds": run.experiment.seconds if run.budget == "seconds" else None,
        "config": run.config(steps), "commits": ["abc"], "finished": True, "metrics": {"iou_way": value},
        "curve": [[images / 2, value / 2], [images, value]], "steps": steps, "images": images,
        "seconds": images / 20, "cpu_seconds": images / 40, "parameters": 1000, "hardware": "CPU, 1 thread(s)",
        "machine": {"cpu": "some CPU", "instructions": "AVX2", "torch": "2", "timm": "1"}, **changes,
    }  # fmt: skip
    rows.path(run).parent.mkdir(parents=True, exist_ok=True)
    rows.path(run).write_text(json.dumps(row))
    return row
