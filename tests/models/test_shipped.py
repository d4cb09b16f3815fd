"""The small trained models that come with the package."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open

import castvision  # noqa: F401 (registers the models)
from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec
from castvision.inference.predictor import load_model
from castvision.models import checkpoint_file
from castvision.models.shipped import FOLDER, shipped_file, shipped_names


def test_names_are_files():
    assert shipped_names() == ["pathfinder32_join"]
    assert shipped_file("pathfinder32_join") == FOLDER / "pathfinder32_join.safetensors"
    assert shipped_file("pathfinder32") is None
    with safe_open(str(shipped_file("pathfinder32_join")), "np") as file:
        assert json.loads(file.metadata()["metrics"])["val/iou_joining_path"] > 0.89


def test_the_paths_are_marked_as_the_figures_say():
    predictor = load_model("pathfinder32_join")
    assert predictor.parts.class_names == ("background", "joining path")
    inside = union = 0
    spec = PathfinderSpec(img_size=32, contour_length=6, mode="clean")
    data = PathfinderDataset(spec, "join", "val", length=300)
    for index in range(len(data)):
        image, target = data[index][:2]
        found = predictor.predict(image[None]).mask.numpy() == 1
        inside += np.sum(found & (target.numpy() == 1))
        union += np.sum(found | (target.numpy() == 1))
    assert inside / union == pytest.approx(0.897, abs=0.02)


def test_timm_loads_the_backbone():
    model = timm.create_model("cast_vit_atto_patch4_32.pathfinder32_join", pretrained=True)
    saved = checkpoint_file.read(FOLDER / "pathfinder32_join.safetensors")["state_dict"]
    own = model.state_dict()
    assert all(torch.equal(own[key.removeprefix("backbone.")], saved[key]) for key in saved if "backbone.blocks" in key)
    with_head = timm.create_model("cast_vit_atto_patch4_32.pathfinder32_join", pretrained=True, num_classes=3)
    assert with_head(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
