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

    def forward(self, image, pixel_mask=None):
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
    assert content["metrics"]["pixel_acc"] == pytest.approx(np.trace(confusion) / confusion.sum())
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
    assert "for 2 classes, got 7" in told
    content = json.loads((dataset / "out/metrics.json").read_text())
    assert len(content["images"]) == 3
    assert len(content["failed"]) == 2


def test_labels_mean_what_they_meant_in_training_or_what_the_command_says(tmp_path, segmenter, capsys):
    rng = np.random.default_rng(0)
    bright = rng.random((40, 30)) > 0.5
    save_image(tmp_path / "images/a.png", bright.astype(np.uint8) * 255)
    for form, mask in {
        "grey": np.where(bright, 255, 0), "rgb": np.repeat(np.where(bright, 255, 0)[..., None], 3, axis=-1),
        "red": np.where(bright, 255, 0)[..., None] * np.array([1, 0, 0]), "turned": np.where(bright, 0, 1),
    }.items():  # fmt: skip
        save_image(tmp_path / form / "a.png", mask.astype(np.uint8))
    content = torch.load(segmenter, weights_only=True)
    content["castvision"]["label_map"] = {"0": 0, "255": 1}
    torch.save(content, tmp_path / "mapped.ckpt")
    runs = [
        ("mapped.ckpt", "grey", None), ("mapped.ckpt", "rgb", None), ("best.ckpt", "grey", "{0: dark, 255: bright}"),
        ("best.ckpt", "red", '{"#000000": dark, "#ff0000": 1}'), ("mapped.ckpt", "turned", "{0: bright, 1: dark}"),
    ]  # fmt: skip
    for number, (model, masks, label_map) in enumerate(runs):
        extra = [] if label_map is None else ["--label-map", label_map]
        arguments = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / masks), *extra]
        out = tmp_path / f"out{number}"
        assert main(["evaluate", "--model", str(tmp_path / model), *arguments, "--output", str(out)]) == 0
        confusion = json.loads((out / "metrics.json").read_text())["confusion"]
        assert confusion == [[int((~bright).sum()), 0], [0, int(bright.sum())]]
    capsys.readouterr()
    assert evaluate(tmp_path, segmenter, "--masks", str(tmp_path / "grey")) == 2
    assert "found 0 (dark) and ignored pixels (255)" in capsys.readouterr().err
    assert evaluate(tmp_path, segmenter, "--masks", str(tmp_path / "grey"), "--label-map", "{0: no, 255: yes}") == 2
    assert "in quotes" in capsys.readouterr().err
    assert evaluate(tmp_path, segmenter, "--masks", str(tmp_path / "grey"), "--label-map", "255") == 2
    assert "expected --label-map such as" in capsys.readouterr().err
    assert evaluate(tmp_path, segmenter, "--masks", str(tmp_path / "grey"), "--label-map", "{0: 0, 255: ignore}") == 0


@pytest.mark.parametrize("masks", ["masks", "val/masks", "masks/val"])
def test_a_list_of_classes_beside_the_masks_is_followed_by_name(tmp_path, segmenter, capsys, masks):
    bright = np.random.default_rng(0).random((40, 30)) > 0.5
    save_image(tmp_path / "images/a.png", bright.astype(np.uint8) * 255)
    save_image(tmp_path / masks / "a.png", np.where(bright, 0, 1).astype(np.uint8))
    (tmp_path / "classes.txt").write_text("bright\ndark\n")
    assert evaluate(tmp_path, segmenter, "--masks", str(tmp_path / masks)) == 0
    confusion = json.loads((tmp_path / "out/metrics.json").read_text())["confusion"]
    assert confusion == [[int((~bright).sum()), 0], [0, int(bright.sum())]]
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert evaluate(tmp_path, segmenter, "--masks", str(tmp_path / masks), "--overwrite") == 2
    assert "names cat, dog, the model's classes are dark, bright; say by --label-map" in capsys.readouterr().err


def test_several_labels_by_a_list(tmp_path, capsys):
    torch.manual_seed(0)
    model = timm.create_model(ATTO, num_classes=2, depth=1)
    path = save(tmp_path / "labels.ckpt", model, task="multilabel")
    rng = np.random.default_rng(0)
    rows = ["path,bright,dark"]  # another order than the checkpoint's
    for number in range(6):
        save_image(tmp_path / f"images/{number}.png", rng.integers(0, 256, (32, 32), dtype=np.uint8))
        rows.append(f"images/{number}.png,{number % 2},{int(number < 2)}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    arguments = ["evaluate", "--model", str(path), "--labels", str(tmp_path / "list.csv")]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    assert [(row["name"], row["count"]) for row in content["classes"]] == [("dark", 2), ("bright", 3)]
    assert content["images"][1]["truth"] == ["dark", "bright"]
    for row in content["classes"]:
        column = np.array([record["probabilities"][row["name"]] for record in content["images"]])
        truth = np.array([row["name"] in record["truth"] for record in content["images"]])
        predicted = column > 0.5
        assert row["f1"] == pytest.approx(2 * (truth & predicted).sum() / (truth.sum() + predicted.sum()))
        ranked = truth[np.argsort(-column)]
        precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
        assert row["ap"] == pytest.approx(precision[ranked].mean())
    assert content["confusion"] is None and not (tmp_path / "out/confusion.png").exists()
    assert (tmp_path / "out/worst.png").is_file()
    assert evaluate(tmp_path, path, "--overwrite") == 2
    assert "needs --labels LIST.csv" in capsys.readouterr().err
    assert main([*arguments, "--output", str(tmp_path / "o"), "--images", str(tmp_path / "images")]) == 2
    assert "give one of both" in capsys.readouterr().err
    (tmp_path / "list.csv").write_text(rows[0].replace("dark", "cat") + "\n" + rows[1] + "\n")
    assert main([*arguments, "--output", str(tmp_path / "o")]) == 2
    assert "expected the columns dark, bright" in capsys.readouterr().err
    assert main(["predict", str(tmp_path / "images/0.png"), "--model", str(path), "--output", str(tmp_path / "p")]) == 0
    predictions = (tmp_path / "p/predictions.csv").read_text()
    assert all(f",{name}," in predictions for name in NAMES)
    arguments[-1] = str(tmp_path / "lists/list.csv")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/list.csv").write_text("\n".join(rows).replace("images/", "../images/") + "\n")
    assert main([*arguments, "--output", str(tmp_path / "o")]) == 2
    assert "line 2: expected a file in" in capsys.readouterr().err
    assert main([*arguments, "--output", str(tmp_path / "o"), "--allow-outside-root"]) == 0


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
    assert content["metrics"]["acc1"] == pytest.approx(np.trace(confusion) / 12)
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


def test_a_table_of_classes_has_no_overlap_and_no_empty_column(tmp_path, classifier, capsys):
    for place in range(4):
        pixels = np.full((32, 32), 60 * place, np.uint8)
        save_image(tmp_path / f"images/dark/{place}.png", pixels)
    assert evaluate(tmp_path, classifier) == 0
    rows = json.loads((tmp_path / "out/metrics.json").read_text())["classes"]
    assert set(rows[0]) == {"name", "acc", "f1", "precision", "count"}
    head = next(line for line in capsys.readouterr().out.splitlines() if "count" in line)
    assert "acc" in head and "f1" in head and "iou" not in head
    assert main(["predict", str(tmp_path / "images"), "--model", str(classifier), "--output", str(tmp_path / "p")]) == 0
    assert (tmp_path / "p/predictions.csv").read_text().startswith("image,class,name,probability\n")


def labelled_squares(folder, **properties):
    """A bright square on dark ground; a polygon of the square moved one pixel to the right, and one that is ignored."""
    pixels = np.zeros((40, 30), np.uint8)
    pixels[10:20, 10:20] = 255
    save_image(folder / "images/a.png", pixels)

    def feature(value, x0, y0, x1, y1):
        ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
        return {
            "type": "Feature",
            "properties": {"kind": value},
            "geometry": {"type": "Polygon", "coordinates": [ring]},
        }

    features = [feature("roof", 11, 10, 21, 20), feature("ground", 0, 0, 30, 30)]
    (folder / "labels.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    how = {"path": str(folder / "labels.geojson"), "attribute": "kind", "crs": "image", **properties}
    return ["--vector", json.dumps(how)]


def test_polygons_in_place_of_masks(tmp_path, segmenter, capsys):
    """The smallest polygon is a pixel's class; the last ten rows have no label and count nowhere."""
    vector = labelled_squares(tmp_path, classes={"roof": "bright", "ground": "dark"})
    assert evaluate(tmp_path, segmenter, *vector) == 0
    assert "NaN" not in (tmp_path / "out/metrics.json").read_text()
    content = json.loads((tmp_path / "out/metrics.json").read_text())
    assert content["confusion"] == [[30 * 30 - 110, 10], [10, 90]]
    assert content["metrics"]["iou_bright"] == pytest.approx(90 / 110)
    assert evaluate(tmp_path, segmenter, *vector, "--masks", str(tmp_path / "images"), "--overwrite") == 2
    assert "without --masks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("properties", "message"),
    [
        ({"classes": {"roof": "bright", "ground": "soil"}}, "expected classes dark, bright or ignore"),
        ({"colour": "red"}, "expected path and attribute in --vector"),
        ({"path": "gone.geojson"}, "no such file of labels: 'gone.geojson'"),
        ({"attribute": "sort"}, "sort"),
    ],
)
def test_polygons_that_do_not_fit_are_refused(tmp_path, segmenter, capsys, properties, message):
    assert evaluate(tmp_path, segmenter, *labelled_squares(tmp_path, **properties)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_image_without_labels_has_no_figure(dataset, segmenter):
    """It is neither the worst of all, nor NaN, which is no JSON."""
    save_image(dataset / "images/none.png", np.zeros((9, 9), np.uint8))
    save_image(dataset / "masks/none.png", np.full((9, 9), 255, np.uint8))
    assert evaluate(dataset, segmenter, "--masks", str(dataset / "masks")) == 0
    text = (dataset / "out/metrics.json").read_text()
    record = next(one for one in json.loads(text)["images"] if one["image"].endswith("none.png"))
    assert record["miou"] is None and record["pixel_acc"] is None
    assert "NaN" not in text
