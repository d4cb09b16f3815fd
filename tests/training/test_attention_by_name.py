"""``attention`` beside ``model_name``: a ViT of timm's is converted wherever its name or its checkpoint goes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from castvision.models.convert import is_converted
from castvision.models.recipe import load
from castvision.models.segmenter import unwrap
from castvision.training import ClassificationTask, MultiLabelTask, SegmentationTask
from castvision_cli import main
from tests.training.test_every_door import SIZE, classes, masks

VIT = "vit_tiny_patch16_224"
SMALL = {"img_size": SIZE, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
COMMON = [
    "--data.num_workers", 0, "--model.model_name", VIT, "--model.model_kwargs", json.dumps(SMALL),
    "--trainer.max_epochs", 1, "--trainer.precision", "32-true", "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false", "--data.batch_size", 2, "--data.img_size", SIZE,
]  # fmt: skip
QUIET = pytest.mark.filterwarnings("ignore:.*FileIO.*:pytest.PytestUnraisableExceptionWarning")  # timm closes no file


def call(*words):
    return main([str(word) for word in words])


def kept(checkpoint):
    return torch.load(checkpoint, weights_only=True)["castvision"]["model_kwargs"].get("attention")


@QUIET
@pytest.mark.parametrize("config", ["segmentation_folder", "image_folder"])
def test_a_converted_model_goes_through_every_command(tmp_path, config):
    data, measured = (masks if config == "segmentation_folder" else classes)(tmp_path / "data")
    words = ["--config", config, *data, *COMMON, "--model.attention", "near_far", "--model.num_classes", 2]
    assert call("train", *words, "--run_dir", tmp_path / "run") == 0
    best = tmp_path / "run/best.ckpt"
    recipe, model = load(best)
    assert recipe.model_kwargs == {**SMALL, "attention": "near_far", "in_chans": 3} and is_converted(unwrap(model))
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert {name.split("/")[1] for name in metrics["clusters"]} == {"blocks.0.attn", "blocks.1.attn"}
    saved = (tmp_path / "run/config.yaml").read_text()
    assert "attention: near_far" in saved

    def run(command, *arguments, name=None):
        folder = tmp_path / (name or command)
        assert call(command, *arguments, "--model", best, "--output", folder, "--device", "cpu") == 0
        return folder

    run("predict", measured[1])
    found = json.loads((run("evaluate", *measured) / "metrics.json").read_text())["metrics"]
    metric = "miou" if config == "segmentation_folder" else "acc1"
    assert np.float32(found[metric]) == np.float32(metrics["best"][f"val/{metric}"])
    run("evaluate", *measured, "--attention", "full", name="baseline")

    shown = json.loads((run("demo", measured[1]) / "summary.json").read_text())["images"]
    assert [[layer["grid_size"] for layer in image["layers"]] for image in shown] == [[[8, 8], [8, 8]]] * len(shown)
    assert (tmp_path / "demo" / shown[0]["files"][0]).is_file()


@QUIET
def test_a_model_with_full_attention_is_shown_large_images_by_near_and_far(tmp_path, capsys):
    data, _ = masks(tmp_path / "data")
    words = ["--config", "segmentation_folder", *data, *COMMON, "--run_dir", tmp_path / "run"]
    assert call("train", *words) == 0 and kept(tmp_path / "run/best.ckpt") is None
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png")
    predict = ["predict", tmp_path / "large.png", "--model", tmp_path / "run/best.ckpt", "--tile", 64, "--output"]
    assert call(*predict, tmp_path / "refused") == 2
    assert "expected --tile 32" in capsys.readouterr().err
    assert call(*predict, tmp_path / "out", "--attention", "near_far") == 0
    with Image.open(tmp_path / "out/masks/large.png") as mask:
        assert mask.size == (96, 64)
    resumed = [*predict, tmp_path / "out", "--attention", "full", "--resume"]
    assert call(*resumed) == 2
    assert "attention was 'near_far', is 'full'" in capsys.readouterr().err


def test_the_demo_converts_a_model_by_name(tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ["demo", tmp_path / "a.png", "--max-size", 64, "--model", VIT]
    assert call(*words, "--output", tmp_path / "none") == 2
    assert "attention near_far" in capsys.readouterr().err
    assert call(*words, "--output", tmp_path / "out", "--attention", "near_far") == 0
    (image,) = json.loads((tmp_path / "out/summary.json").read_text())["images"]
    assert [layer["grid_size"] for layer in image["layers"]] == [[3, 4]] * 12


def test_a_folder_of_timms_is_the_original_and_converted_again_when_asked(tmp_path):
    from castvision.inference.predictor import load_model

    task = ClassificationTask(VIT, 2, SMALL, attention="near_far")
    timm.models.save_for_hf(task.model, tmp_path / "saved", model_args=SMALL)
    plain, converted = (load_model(tmp_path / "saved", attention=each) for each in (None, "near_far"))
    assert not is_converted(plain.model) and is_converted(converted.model)
    assert (plain.parts.has_clusters, converted.parts.has_clusters) == (False, True)
    assert (plain.parts.fixed_size, converted.parts.fixed_size) == ((SIZE, SIZE), None)


@QUIET
@pytest.mark.parametrize("freeze", ["[blocks.0, patch_embed]", "[blocks, patch_embed, norm, cls_token, pos_embed]"])
def test_frozen_parts_and_layer_decay_of_a_converted_model(tmp_path, freeze):
    torch.manual_seed(0)
    start = timm.create_model(VIT, **SMALL)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    data, _ = classes(tmp_path / "data")
    words = ["--config", "image_folder", *data, *COMMON, "--model.attention", "near_far", "--model.num_classes", 2]
    words += ["--init-from", tmp_path / "start.pth", "--model.freeze", freeze, "--model.layer_decay", 0.5]
    assert call("train", *words, "--run_dir", tmp_path / "run") == 0
    _, model = load(tmp_path / "run/last.ckpt")
    parts = tuple(freeze.strip("[]").split(", "))
    for name, value in model.state_dict().items():
        if name.startswith("head."):
            continue
        assert torch.equal(value, start.state_dict()[name]) == name.startswith(parts), name


@pytest.mark.parametrize("task", [ClassificationTask, MultiLabelTask, SegmentationTask])
def test_attention_stands_in_one_place(task):
    beside, inside = task(VIT, 2, SMALL, attention="full"), task(VIT, 2, {**SMALL, "attention": "full"})
    assert beside.recipe == inside.recipe
    assert task(VIT, 2, {**SMALL, "attention": "full"}, attention="full").recipe == inside.recipe
    assert is_converted(beside.backbone)
    with pytest.raises(ValueError, match="attention in one place, got attention='near_far' and 'full'"):
        task(VIT, 2, {**SMALL, "attention": "full"}, attention="near_far")


def test_models_of_ours_take_their_own_attention_by_the_same_word():
    task = ClassificationTask("cast_vit_atto_patch4_32", 2, {"depth": 1}, attention="paper")
    assert task.model.blocks[0].attn.options.attention == "paper"


@pytest.mark.parametrize(
    ("name", "attention", "message"),
    [
        ("cast_vit_atto_patch4_32", "full", "with attention of castvision.s already"),
        (VIT, "near", "did you mean 'near_far'"),
    ],
)
def test_attention_that_a_model_cannot_have_is_refused(name, attention, message):
    from castvision.inference.predictor import load_model

    with pytest.raises(ValueError, match=message):
        load_model(name, attention=attention)
