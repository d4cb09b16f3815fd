"""A folder in timm's layout gives what the checkpoint gives, in timm and in castvision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import castvision
from castvision.inference.predictor import load_model
from castvision_cli import main
from tests.inference.conftest import classifier, segmenter
from tests.inference.prediction_cases import ATTO, NAMES, save

__all__ = ["classifier", "segmenter"]
SMALL = {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": 64}
METRICS = {
    "best": {"val/acc1": 0.75, "val/loss": 0.625, "step": 40},
    "last": {"val/acc1": 0.5},
    "per_class": [{"name": "path | way", "f1": 0.125}],
    "training": {"steps": 40, "images": 160, "seconds": 1.5, "images_per_second": 106.7},
    "model": {"name": "m", "kwargs": {}, "parameters": 1234567},
    "started_from": None,
    "hardware": "a CPU",
    "versions": {"torch": "2.14"},
}


def export(source: Path, folder: Path, *more: str) -> int:
    return main(["export", str(source), "--format", "hf", "--output", str(folder), *more])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_timm_and_castvision_load_what_was_trained(classifier: Path, tmp_path: Path, images: torch.Tensor) -> None:
    assert export(classifier, tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "config.json", "model.safetensors",
    ]  # fmt: skip
    trained, ours = load_model(classifier), load_model(tmp_path / "out")
    plain = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(plain(images), trained.model(images))
    assert torch.equal(ours.model(images), trained.model(images))
    assert (ours.parts.task, ours.parts.input, ours.class_names) == (
        "classification",
        trained.parts.input,
        tuple(NAMES),
    )
    assert tuple(plain.pretrained_cfg["mean"]) == (0.5, 0.4, 0.3)


@pytest.mark.parametrize(("resize", "side"), [("crop", 90), ("none", 32)])
def test_timm_shows_images_as_in_training(tmp_path: Path, resize: str, side: int) -> None:
    model = timm.create_model(ATTO, num_classes=3, depth=2, in_chans=3)
    path = save(tmp_path / "best.ckpt", model, task="classification", head=None, resize=resize)
    assert export(path, tmp_path / "out") == 0
    plain = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    shown = create_transform(**resolve_model_data_config(plain), is_training=False)(Image.fromarray(pixels))
    assert torch.allclose(shown, load_model(tmp_path / "out").prepare_whole(pixels)[0], atol=1e-5)


@torch.no_grad()
def test_near_and_far_in_a_vit_of_timms_is_put_in_again(tmp_path: Path, images: torch.Tensor) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **SMALL).eval()
    castvision.convert(model, num_clusters=4)
    path = save(
        tmp_path / "best.ckpt", model, task="classification", head=None, model_name="vit_tiny_patch16_224",
        model_kwargs={**SMALL, "attention": "near_far", "num_clusters": 4}, img_size=[64, 64],
    )  # fmt: skip
    assert export(path, tmp_path / "out") == 0
    loaded = load_model(tmp_path / "out")
    assert torch.equal(loaded.model(images), model(images))
    assert loaded.parts.has_clusters
    plain = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(plain(images), castvision.revert(model)(images))


def test_options_of_pixels_are_refused_as_with_the_checkpoint(
    classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(classifier, tmp_path / "out") == 0
    for name in NAMES:
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / name / f"{name}.png")
    for model in (classifier, tmp_path / "out"):
        common = ["--model", str(model), "--output", str(tmp_path / "answers"), "--mpp", "1"]
        capsys.readouterr()
        assert main(["predict", str(tmp_path / "images"), *common, "--probabilities", "--skip-blank", "0"]) == 2
        assert "it takes no --probabilities, --mpp, --skip-blank; leave it out" in capsys.readouterr().err
        assert main(["evaluate", "--images", str(tmp_path / "images"), *common, "--tta", "d4"]) == 2
        assert "it takes no --tta, --mpp; leave it out" in capsys.readouterr().err


def test_the_card_has_the_runs_own_figures_and_no_others(classifier: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("best", "epoch3"):
        (run / f"{name}.ckpt").write_bytes(classifier.read_bytes())
    (run / "metrics.json").write_text(json.dumps(METRICS))
    assert export(run / "best.ckpt", tmp_path / "out") == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    for line in (
        "| val/acc1 | 0.7500 |",
        "| val/loss | 0.6250 |",
        "| path \\| way | 0.1250 |",
        "| parameters | 1,234,567 |",
        "| hardware | a CPU |",
        "background, path, dot",
    ):
        assert line in card
    assert "0.5000" not in card and "step |" not in card
    assert export(run / "epoch3.ckpt", tmp_path / "other") == 0
    assert "No figures of this checkpoint" in (tmp_path / "other" / "README.md").read_text()


def test_what_the_layout_cannot_hold_is_refused_with_the_way_out(
    segmenter: Path, classifier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        "holds no head of segmentation (LinearHead)": [str(segmenter), "--format", "hf"],
        "--int8 and --images belong to --format onnx": [str(classifier), "--format", "hf", "--int8"],
        "add --int8": [str(classifier), "--format", "onnx", "--images", "x.png"],
        "--private belongs to --push-to-hub": [str(classifier), "--format", "hf", "--private"],
        "expected USER/NAME": [str(classifier), "--format", "hf", "--push-to-hub", "no name"],
        "no such checkpoint": [str(tmp_path / "none.ckpt"), "--format", "hf"],
        "name the checkpoint": [str(folder_of_timm(tmp_path)), "--format", "hf"],
    }
    for told, words in cases.items():
        assert main(["export", *words, "--output", str(tmp_path / "out")]) == 2
        errors = capsys.readouterr().err
        assert told in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


def folder_of_timm(folder: Path) -> Path:
    (folder / "timm").mkdir()
    (folder / "timm" / "config.json").write_text("{}")
    return folder / "timm"


@torch.no_grad()
def test_transformers_loads_the_folder(classifier: Path, tmp_path: Path, images: torch.Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    assert export(classifier, tmp_path / "out") == 0
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(loaded(images).logits, load_model(classifier).model(images))
    assert [loaded.config.id2label[index] for index in range(3)] == NAMES
