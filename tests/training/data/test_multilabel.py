from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from castvision.inference.predictor import load_model
from castvision.training.data.multilabel import MultiLabelCsvDataModule
from castvision.training.tasks.classification import MultiLabelTask
from castvision_cli import train as cli
from tests.data.image_files import save_apart
from tests.training.conftest import TINY_VIT

COLOURS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Images whose channels are bright where their label is set."""
    folder = tmp_path_factory.mktemp("lists")
    for split, count in (("train", 64), ("val", 16), ("test", 8)):
        lines = ["path,red,green,blue"]
        for number in range(count):
            bits = [number >> place & 1 for place in range(3)]
            noise = number * 37 % 50
            name = f"{split}{number}.png"
            save_apart(Image.new("RGB", (16, 16), tuple(180 * bit + noise for bit in bits)), folder / name)
            lines.append(",".join([name, *map(str, bits)]))
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return folder


def data_of(root, **changes):
    return MultiLabelCsvDataModule(str(root), img_size=16, batch_size=8, num_workers=0, **changes)


def test_data(root):
    data = data_of(root)
    assert data.class_names == list(COLOURS)
    image, target = next(iter(data.val_dataloader()))
    assert (image.shape, target.shape, target.dtype) == ((16, 3, 16, 16), (16, 3), torch.float32)
    assert torch.equal(image.mean(dim=(2, 3)) > 0, target.bool())
    one = data_of(root / "train.csv", val_share=0.25)
    assert (len(one.dataset("train")), len(one.dataset("val"))) == (48, 16)


def test_a_list_with_an_unknown_name_is_an_error_before_training(root, tmp_path):
    for split, label in (("train", "red"), ("val", "rad")):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        (tmp_path / f"{split}.csv").write_text(f"path,labels\na.png,{label}\n")
    with pytest.raises(ValueError, match=r"val\.csv, line 2: unknown label 'rad'"):
        data_of(tmp_path)


def task(**changes):
    kwargs = {**TINY_VIT, "in_chans": 3}
    return MultiLabelTask("vit_tiny_patch16_224", 3, kwargs, **changes)


def test_loss_and_decision_have_known_values():
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    target = torch.tensor([[1.0, 1.0, 0.0]])
    expected = (math.log(2) + math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 3
    assert task().loss(logits, target).item() == pytest.approx(expected, rel=1e-6)
    weighted = task(pos_weight=[3.0, 1.0, 1.0]).loss(logits, target).item()
    assert weighted - expected == pytest.approx(2 * math.log(2) / 3, rel=1e-5)
    assert task().decide(logits).tolist() == [[0, 1, 0]]
    with pytest.raises(ValueError, match="one weight > 0 for each class"):
        task(pos_weight=[1.0])


def test_figures_leave_out_classes_that_never_occur():
    figures = task().metrics(torch.tensor([[0.5, 1.0, torch.nan], [0.2, 0.4, torch.nan]]), COLOURS)
    assert figures == pytest.approx(
        {"map": 0.75, "f1": 0.3, "ap_red": 0.5, "ap_green": 1.0, "f1_red": 0.2, "f1_green": 0.4}
    )


def test_metrics_of_a_round_and_a_class_without_images(monkeypatch):
    module = task()
    logged = {}
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(module, "forward", lambda image: image)
    target = torch.tensor([[1.0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    logits = torch.tensor([[3.0, 1, 1], [2, -1, -1], [1, -2, -1], [-1, 2, -1]])
    module._count("val", (logits[:3], target[:3]))
    module._count("val", (logits[3:], target[3:]))
    module._summarise("val")
    assert logged == pytest.approx(
        {
            "val/ap_class_0": (1 + 2 / 3) / 2,
            "val/ap_class_1": (1 / 2 + 2 / 3) / 2,
            "val/f1_class_0": 4 / 5,
            "val/f1_class_1": 2 / 4,
            "val/map": (5 / 6 + 7 / 12) / 2,
            "val/f1": 0.65,
        }
    )


def test_a_run_learns_and_reports(root, tmp_path, capsys):
    recipe = {
        "model": {
            "class_path": "MultiLabelTask",
            "init_args": {
                "model_name": "vit_tiny_patch16_224",
                "num_classes": 3,
                "model_kwargs": {**TINY_VIT, "in_chans": 3},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.004}},
            },
        },
        "data": {
            "class_path": "MultiLabelCsvDataModule",
            "init_args": {"root": str(root), "img_size": 16, "batch_size": 16, "num_workers": 0},
        },
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 4, "max_epochs": 15},
    }
    config, run = tmp_path / "labels.yaml", tmp_path / "run"
    config.write_text(yaml.safe_dump(recipe))
    assert cli.main(["--config", str(config), "--run_dir", str(run)]) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["best"]["val/map"] > 0.95
    assert metrics["best"]["val/f1"] > 0.9
    assert metrics["confusion"] is None
    assert (run / "report.png").stat().st_size > 10_000
    facts = torch.load(run / "best.ckpt", weights_only=True)["castvision"]
    assert (facts["task"], facts["class_names"]) == ("multilabel", list(COLOURS))
    assert len(facts["mean"]) == 3
    assert cli.main(["test", "--config", str(config), "--run_dir", str(run)]) == 0
    assert json.loads((run / "test_metrics.json").read_text())["figures"]["test/map"] > 0.95
    assert cli.main(["predict", "--config", str(config), "--run_dir", str(run)]) == 0
    predicted = torch.load(run / "predictions.pt", weights_only=True)
    truth = data_of(root)._splits["test"].table.targets
    assert (predicted.numpy() == truth).mean() > 0.9
    predictor = load_model(run / "best.ckpt")
    pixels = np.full((16, 16, 3), 20, np.uint8)
    pixels[..., 1:] = 200  # green and blue
    prediction = predictor.predict(predictor.prepare(pixels))
    assert (prediction.task, (prediction.probabilities > 0.5).tolist()) == ("multilabel", [False, True, True])
    recipe["model"]["class_path"] = "ClassificationTask"
    config.write_text(yaml.safe_dump(recipe))
    capsys.readouterr()
    assert cli.main(["--config", str(config), "--run_dir", str(tmp_path / "other")]) == 2
    assert "expected a task for multilabel as the data are, got ClassificationTask" in capsys.readouterr().err
