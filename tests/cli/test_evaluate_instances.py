"""Panoptic quality by ``castvision evaluate --instances``."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage import data as photographs

from castvision_cli.evaluate import main as evaluate
from castvision_cli.predict import main as predict


@pytest.fixture(scope="module")
def answers(tmp_path_factory, segmenter):
    """Two images; their true classes and objects are what the model itself says of them."""
    root = tmp_path_factory.mktemp("answers")
    for folder in ("images", "masks", "objects"):
        (root / folder).mkdir()
    for index, name in enumerate("ab"):
        Image.fromarray(photographs.astronaut()[100 * index : 100 * index + 90, 150:250]).save(
            root / f"images/{name}.png"
        )
    words = ["--instances", "components", "--instance-files", "tiff", "--no-overlay"]
    assert predict([str(root / "images"), "--model", str(segmenter), "--output", str(root / "out"), *words]) == 0
    for name in "ab":
        (root / f"out/masks/{name}.png").rename(root / f"masks/{name}.png")
        (root / f"out/instances/{name}.tif").rename(root / f"objects/{name}.tif")
    return root


def measured(root, segmenter, out, *words, masks="masks", objects="objects"):
    given = ["--masks", str(root / masks)] if masks else []
    given += ["--instance-masks", str(objects if objects != "objects" else root / objects)]
    code = evaluate(["--model", str(segmenter), "--images", str(root / "images"), "--output", str(out), *given, *words])
    return code, json.loads((out / "metrics.json").read_text()) if code == 0 else None


def test_a_models_own_objects_are_all_right(tmp_path, segmenter, answers, capsys):
    code, content = measured(answers, segmenter, tmp_path / "out", "--instances", "components")
    assert code == 0
    assert [content["metrics"][name] for name in ("pq", "sq", "rq", "miou")] == [1, 1, 1, 1]
    background, *things = content["classes"]
    assert background["pq"] is None
    assert sum(row["matched"] for row in things) == sum(
        tifffile.imread(answers / f"objects/{name}.tif").max() for name in "ab"
    )
    assert all(row["wrong"] == row["missed"] == 0 for row in things)
    assert all(image["pq"] == 1 for image in content["images"])
    assert "pq 1" in capsys.readouterr().out


def test_objects_that_are_missing_and_pixels_without_an_object(tmp_path, segmenter, answers):
    """What is of a class, but in no true object, is ignored; larger objects alone are found."""
    changed = tmp_path / "objects"
    changed.mkdir()
    for name in "ab":
        ids = tifffile.imread(answers / f"objects/{name}.tif")
        ids[ids == ids.max()] = 0
        tifffile.imwrite(changed / f"{name}.tif", ids.astype(np.uint16))
    code, content = measured(answers, segmenter, tmp_path / "out", "--instances", "components", objects=changed)
    assert code == 0
    assert content["metrics"]["pq"] == 1
    words = ["--instances", "components", "--min-area", "20"]
    code, content = measured(answers, segmenter, tmp_path / "large", *words)
    assert sum(row["missed"] for row in content["classes"][1:]) > 0
    assert content["metrics"]["sq"] == 1
    assert content["metrics"]["rq"] < 1


def test_what_cannot_be_measured_is_refused(tmp_path, segmenter, answers, capsys):
    out = tmp_path / "out"
    assert measured(answers, segmenter, out, "--instances", "components", masks=None)[0] == 2
    assert "expected --masks beside --instance-masks" in capsys.readouterr().err
    assert measured(answers, segmenter, out)[0] == 2
    assert "expected --instances and --instance-masks together" in capsys.readouterr().err
    assert measured(answers, segmenter, out, "--instances", "components", "--things", "dot")[0] == 1
    assert "expected objects of the classes [2]" in capsys.readouterr().out
    assert measured(answers, segmenter, out, "--instances", "centres", "--overwrite")[0] == 2
    assert "gives no centres" in capsys.readouterr().err


def test_a_model_of_whole_images_is_measured_by_tiles(tmp_path, segmenter, answers, capsys):
    content = torch.load(segmenter, weights_only=True)
    content["castvision"] |= {"resize": "fit"}
    torch.save(content, tmp_path / "fit.ckpt")
    fitted, words = tmp_path / "fit.ckpt", ["--instances", "components"]
    assert measured(answers, fitted, tmp_path / "out", *words)[0] == 2
    assert "objects are measured at the images' own; give --tile" in capsys.readouterr().err
    code, metrics = measured(answers, fitted, tmp_path / "out", *words, "--tile", "32")
    assert code == 0
    assert metrics["metrics"]["pq"] == 1


def test_all_figures_are_read_in_80_characters(tmp_path, segmenter, answers, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, _ = measured(answers, segmenter, tmp_path / "out", "--instances", "components")
    told = capsys.readouterr().out
    assert code == 0 and "…" not in told
    assert {"boundary_f1", "precision", "matched", "missed"} <= {*told.split()}
