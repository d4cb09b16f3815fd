"""What the tests of prediction share: a checkpoint with its facts, and readers of what a run wrote."""

from __future__ import annotations

import csv

import numpy as np
import torch
from PIL import Image

ATTO = "cast_vit_atto_patch4_32"
NAMES = ["background", "path", "dot"]


def save(path, model, **change):
    facts = {
        "format": 1, "task": "segmentation", "model_name": ATTO, "model_kwargs": {"depth": 2, "in_chans": 3},
        "head": "LinearHead", "head_kwargs": {}, "out_indices": None, "num_classes": 3, "class_names": NAMES,
        "in_chans": 3, "img_size": [32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3], **change,
    }  # fmt: skip
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"castvision": facts, "state_dict": weights}, path)
    return path


def files_of(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def table_of(folder):
    return list(csv.DictReader((folder / "predictions.csv").read_text().splitlines()))
