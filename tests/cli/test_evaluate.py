from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from castvision.models.segmenter import create_segmenter
from castvision_cli import main

ATTO = "cast_vit_atto_patch4_32"
NAMES = ["dark", "bright"]


def save(path, model, **change):
    facts = {
        "format": 1, "task": "segmentation", "model_name": ATTO, "model_kwargs": {"depth": 1}, "head": "LinearHead",
        "head_kwargs": {}, "out_indices": None, "num_classes": 2, "class_names": NAMES, "in_chans": 1,
        "img_size": [32, 32], "mean": [0.5], "std": [0.25], **change,
    }  # fmt: skip
    torch.save({"castvision": facts, "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, path)
    return path


class Threshold(nn.Module):
    """Bright pixels are class 1."""

    def forward(self, image):
        return torch.cat([-image, image], dim=1)


@pytest.fixture
def segmenter(tmp_path, monkeypatch):
    """A checkpoint whose model is replaced by one with known answers."""
    path = save(tmp_path / "best.ckpt", create_segmenter(ATTO, 2, head="LinearHead", model_kwargs={"depth": 1}))
    from castvision.inference import predictor

    load = predictor.load_model

    def load_known(*arguments, **options):
        loaded = load(*arguments, **options)
        loaded.model = Threshold()
        return loaded

    monkeypatch.setattr(predictor, "load_model", load_known)
    return path


def save_image(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def dataset(tmp_path):
    """Three images; in the masks of two some pixels differ, some are ignored."""
    rng = np.random.default_rng(0)
    wrong = {"a": 0, "b": 300, "deep/c": 40}
    for name, count in wrong.items():
        image = (rng.random((70, 45)) > 0.6).astype(np.uint8) * 255
        mask = (image > 127).astype(np.uint8)
        flipped = rng.permutation(mask.size)[:count]
        mask.ravel()[flipped] ^= 1
        mask[:5] = 255
        save_image(tmp_path / f"images/{name}.png", image)
        save_image(tmp_path / f"masks/{name}.png", mask)
    return tmp_path


def evaluate(folder, model, *extra):
    arguments = ["--model", str(model), "--images", str(folder / "images"), "--output", str(folder / "out"), *extra]
    return main(["evaluate", *arguments])


def test_figures_are_those_of_all_pixels(dataset, segmenter, capsys):
    assert evaluate(dataset, segmenter, "--masks", str(dataset / "masks")) == 0
    content = json.loads((dataset / "out/metrics.json").read_text())
    confusion = np.zeros((2, 2), int)
    for name in ("a", "b", "deep/c"):
        with Image.open(dataset / f"images/{name}.png") as image, Image.open(dataset / f"masks/{name}.png") as mask:
            predicted, truth = np.asarray(image) > 127, np.asarray(mask)
        np.add.at(confusion, (truth[5:], predicted[5:].astype(int)), 1)
    assert content["confusion"] == confusion.tolist()
    iou = np.diag(confusion) / (confusion.sum(0) + confusion.sum(1) - np.diag(confusion))
    assert content["metrics"]["miou"] == pytest.approx(iou.mean())
    assert [row["iou"] for row in content["classes"]] == pytest.approx(iou.tolist())
    assert content["metrics"]["pixel_acc"] == pytest.approx(100 * np.trace(confusion) / confusion.sum())
    assert 0.5 < content["metrics"]["boundary_f1"] <= 1
    scores = {record["image"][-5:]: record["miou"] for record in content["images"]}
    assert scores["a.png"] == 1 > scores["c.png"] > scores["b.png"]
    for name in ("confusion.png", "worst.png"):
        with Image.open(dataset / "out" / name) as picture:
            assert min(picture.size) > 200
    told = capsys.readouterr().out
    assert "bright" in told
    assert "miou" in told


def test_masks_that_do_not_fit_are_named_and_the_others_measured(dataset, segmenter, capsys):
    save_image(dataset / "images/size.png", np.zeros((9, 9), np.uint8))
    save_image(dataset / "masks/size.png", np.zeros((9, 8), np.uint8))
    save_image(dataset / "images/label.png", np.zeros((9, 9), np.uint8))
    save_image(dataset / "masks/label.png", np.full((9, 9), 7, np.uint8))
    assert evaluate(dataset, segmenter, "--masks", str(dataset / "masks")) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "mask of the image's size 9 × 9, got 9 × 8" in told
    assert "found [7]" in told
    content = json.loads((dataset / "out/metrics.json").read_text())
    assert len(content["images"]) == 3
    assert len(content["failed"]) == 2


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(ATTO, num_classes=2, depth=1)
    return save(tmp_path / "class.ckpt", model, task="classification")


def test_classes_by_folder(tmp_path, classifier):
    rng = np.random.default_rng(0)
    for place in range(12):
        save_image(tmp_path / f"images/{NAMES[place % 2]}/{place}.png", rng.integers(0, 256, (32, 32), dtype=np.uint8))
    assert evaluate(tmp_path, classifier) == 0
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    confusion = np.asarray(content["confusion"])
    assert confusion.sum(1).tolist() == [6, 6]
    assert content["metrics"]["acc1"] == pytest.approx(100 * np.trace(confusion) / 12)
    assert all(record["truth"] in record["image"] for record in content["images"])
    assert (tmp_path / "out/worst.png").is_file()


def test_wrong_arguments(dataset, segmenter, classifier, capsys):
    assert evaluate(dataset, segmenter) == 2
    assert "needs --masks" in capsys.readouterr().err
    assert evaluate(dataset, classifier, "--masks", str(dataset / "masks")) == 2
    assert "no --masks" in capsys.readouterr().err
    assert evaluate(dataset, classifier) == 2
    assert "one folder for each class (dark, bright), found deep, images" in capsys.readouterr().err
    (dataset / "masks/a.png").unlink()
    assert evaluate(dataset, segmenter, "--masks", str(dataset / "masks")) == 2
    assert "no mask in" in capsys.readouterr().err
    assert not (dataset / "out").exists()
