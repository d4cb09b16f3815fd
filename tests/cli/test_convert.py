from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import castvision
from castvision.inference.predictor import load_model
from castvision_cli.convert import main
from tests.inference.prediction_cases import save

NAME = "vit_tiny_patch16_224"


@torch.no_grad()
def test_a_name_with_weights_becomes_a_folder_for_timm_and_castvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = timm.create_model(NAME).eval()
    save_file(plain.state_dict(), tmp_path / "weights.safetensors")
    words = [NAME, "--weights", str(tmp_path / "weights.safetensors"), "--num-clusters", "8", "--anchors", "4"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    x = torch.randn(1, 3, 224, 224)
    loaded = load_model(tmp_path / "out")
    again = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert torch.equal(again(x), plain(x))
    assert loaded.parts.has_clusters and loaded.parts.class_names[0] == "tench"
    assert loaded.parts.input.mean == tuple(plain.pretrained_cfg["mean"])
    assert torch.equal(loaded.model(x), castvision.convert(plain, num_clusters=8, anchors=4)(x))
    assert main([*words[:3], "--output", str(tmp_path / "one"), "--format", "safetensors"]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.safetensors"]
    assert load_file(tmp_path / "one" / "model.safetensors").keys() == plain.state_dict().keys()


@torch.no_grad()
def test_a_checkpoint_with_full_attention_keeps_its_facts(tmp_path: Path) -> None:
    small = {"depth": 1, "embed_dim": 48, "num_heads": 3, "img_size": 64}
    model = timm.create_model(NAME, num_classes=3, **small).eval()
    facts = {"task": "classification", "head": None, "model_name": NAME, "img_size": [64, 64]}
    path = save(tmp_path / "best.ckpt", model, model_kwargs=small, **facts)
    assert main([str(path), "--output", str(tmp_path / "out")]) == 0
    loaded, x = load_model(tmp_path / "out"), torch.randn(1, 3, 128, 96)
    assert loaded.class_names == ("background", "path", "dot")
    assert torch.equal(loaded.model(x), castvision.convert(model)(x))


def test_what_cannot_be_converted_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = timm.create_model("cast_vit_atto_patch4_32", num_classes=3, depth=2, in_chans=3)
    path = save(tmp_path / "ours.ckpt", ours, task="classification", head=None)
    for source, told in {
        str(path): "has near and far already",
        "cast_vit_tiny_patch16_224": "has near and far already",  # without weights, which would be fetched
        "vit_tinny_patch16_224": "did you mean vit_tiny_patch16_224",
        str(tmp_path / "none.ckpt"): "no such checkpoint",
    }.items():
        assert main([source, "--output", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_family_that_cannot_be_converted_is_told_before_weights_are_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("fetched"))
    assert main(["resnet18", "--output", str(tmp_path / "out")]) == 2
    assert "cannot convert a ResNet" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_alone_take_no_options_that_they_could_not_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [NAME, "--format", "safetensors", "--num-clusters", "8", "--window-size", "4"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 2
    assert "--window-size, --num-clusters belongs to --format hf" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
