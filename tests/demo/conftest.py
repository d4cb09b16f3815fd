from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photographs

from castvision.models.segmenter import create_segmenter

ATTO = "cast_vit_atto_patch4_32"


@pytest.fixture(scope="session")
def segmenter(tmp_path_factory):
    """A checkpoint of an untrained segmenter of three classes."""
    torch.manual_seed(1)
    model = create_segmenter(ATTO, 3, head="LinearHead", model_kwargs={"depth": 1, "in_chans": 3})
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.copy_(torch.randn_like(parameter))
    recipe = {
        "format": 1, "task": "segmentation", "model_name": ATTO, "model_kwargs": {"depth": 1, "in_chans": 3},
        "head": "LinearHead", "head_kwargs": {}, "out_indices": None, "num_classes": 3,
        "class_names": ["background", "<b>road</b>", "water"], "in_chans": 3, "img_size": [64, 64],
        "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    path = tmp_path_factory.mktemp("run") / "best.ckpt"
    weights = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"castvision": json.loads(json.dumps(recipe)), "state_dict": weights}, path)
    return path


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "cat.png"
    Image.fromarray(photographs.chelsea()[:200, :280]).save(path)
    return path


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "words.png"
    path.write_text("no picture at all\n")
    return path


@pytest.fixture(scope="session")
def cut(tmp_path_factory, photo):
    """The first half of an image."""
    path = Path(tmp_path_factory.mktemp("cut")) / "cut.png"
    path.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    return path


@pytest.fixture(scope="session")
def five_bands(tmp_path_factory):
    import tifffile

    path = tmp_path_factory.mktemp("bands") / "bands.tif"
    tifffile.imwrite(path, np.zeros((32, 32, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    return path
