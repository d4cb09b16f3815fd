"""A converted model learns what it gave with full attention; through the command line, and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from torch.nn import functional

from castvision.inference.predictor import load_model
from castvision.losses import unexplained_variance
from castvision.models.recipe import load
from castvision.training import ClassificationTask, DistillationTask, SegmentationTask
from castvision.training.tasks.distillation import features_of
from castvision_cli import main

VIT = "vit_tiny_patch16_224"
SIZE = 32
SMALL = {"img_size": SIZE, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}
COARSE = {**SMALL, "window_size": 2, "num_clusters": 2, "anchors": 0}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Weights whose attention is far from even, in a file, and images."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    model = timm.create_model(VIT, **SMALL, num_classes=0)
    for block in model.blocks:
        block.attn.qkv.weight.data *= 12
    torch.save(model.state_dict(), folder / "start.pth")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(12):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 40)).save(folder / f"images/{number}.png")
    return folder


def config(start, **changes):
    arguments = {"model_name": VIT, "model_kwargs": COARSE, "init_from": str(start / "start.pth")}
    arguments |= {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}, **changes}
    images = {"root": str(start / "images"), "img_size": SIZE, "batch_size": 3, "num_workers": 0}
    images["augmentation"] = {"scale": [1, 1], "ratio": [1, 1], "hflip": 0, "interpolation": "bilinear"}
    images["augmentation"]["color_jitter"] = None  # nothing is left to chance, so that runs can be compared
    return {
        "model": {"class_path": "DistillationTask", "init_args": arguments},
        "data": {"class_path": "UnlabelledFolderDataModule", "init_args": images},
        "trainer": {"accelerator": "cpu", "max_epochs": 20, "log_every_n_steps": 1, "gradient_clip_val": 1.0},
    }


def train(folder, content, *words):
    (folder / "distill.yaml").write_text(yaml.safe_dump(content))
    return main(["train", "--config", str(folder / "distill.yaml"), "--run_dir", str(folder / "run"), *map(str, words)])


@pytest.fixture(scope="module")
def run(tmp_path_factory, start):
    folder = tmp_path_factory.mktemp("distilled")
    assert train(folder, config(start)) == 0
    return folder / "run"


def test_held_out_images_come_closer_and_the_figures_say_so(run):
    best = json.loads((run / "metrics.json").read_text())["best"]
    assert best["val/before_unexplained"] > 0.03
    assert best["val/unexplained"] < 0.8 * best["val/before_unexplained"]
    assert best["val/cosine"] > best["val/before_cosine"]
    assert best["val/explained"] == pytest.approx(1 - best["val/unexplained"])
    assert {"val/class_cosine", "val/before_class_cosine", "val/loss"} <= set(best)
    with Image.open(run / "report.png") as picture:
        assert min(picture.size) > 300


def test_the_teacher_is_shown_images_as_its_weights_want_them(run, start, tmp_path):
    """AugReg's were trained on -1..1; what a configuration says goes before."""
    assert timm.get_pretrained_cfg(VIT).mean == (0.5, 0.5, 0.5)
    recipe, _ = load(run / "last.ckpt")
    assert (recipe.input.mean, recipe.input.std) == ((0.5,) * 3, (0.5,) * 3)
    content = config(start)
    content["data"]["init_args"] |= {"mean": [0.25], "std": [0.125]}
    assert train(tmp_path, content, "--trainer.max_epochs", 1) == 0
    recipe, _ = load(tmp_path / "run/last.ckpt")
    assert (recipe.input.mean, recipe.input.std) == ((0.25,) * 3, (0.125,) * 3)


def test_averaged_weights_are_measured_beside_the_newest(start, tmp_path):
    assert train(tmp_path, config(start), "--trainer.max_epochs", 2, "--ema", 0.9) == 0
    best = json.loads((tmp_path / "run/metrics.json").read_text())["best"]
    assert best["val/newest_explained"] != best["val/explained"]
    newest = DistillationTask(VIT, model_kwargs=COARSE, init_from=str(start / "start.pth"))
    saved = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    newest.load_state_dict(saved["current_model_state"])
    assert any(not torch.equal(saved["state_dict"][name], each) for name, each in newest.state_dict().items())


def test_a_run_that_helps_nobody_says_so(start, tmp_path, capsys):
    content = config(start, optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}})
    assert train(tmp_path, content, "--trainer.max_epochs", 1) == 0
    assert "no closer to full attention than before" in capsys.readouterr().err


def test_only_attention_and_norms_have_changed(run, start):
    before = torch.load(start / "start.pth", weights_only=True)
    _, model = load(run / "last.ckpt")
    after = model.state_dict()
    assert before.keys() == after.keys()  # a plain ViT's
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if ".attn." in name or "norm" in name}


def test_the_checkpoint_is_loaded_wherever_features_are_wanted(run, start, tmp_path, capsys):
    predictor = load_model(run / "best.ckpt")
    assert (predictor.is_trained, predictor.has_classes, predictor.class_names) == (True, False, ())
    assert predictor.parts.has_clusters and predictor.parts.fixed_size is None
    assert predictor.parts.input.img_size == (SIZE, SIZE) and predictor.parts.input.resize == "crop"
    assert predictor.model.forward_features(torch.randn(1, 3, 24, 48)).shape == (1, 1 + 6 * 12, 32)

    words = ["--model", str(run / "best.ckpt"), "--output"]
    picture = str(start / "images/0.png")
    assert main(["predict", picture, *words, str(tmp_path / "p")]) == 2
    assert "no classes; train a classifier or segmenter with --init-from" in capsys.readouterr().err
    assert main(["evaluate", "--images", str(start / "images"), *words, str(tmp_path / "e")]) == 2
    assert "no classes to measure" in capsys.readouterr().err
    assert main(["demo", picture, *words, str(tmp_path / "d")]) == 0
    (image,) = json.loads((tmp_path / "d/summary.json").read_text())["images"]
    assert image["prediction"] is None and len(image["layers"]) == 2

    weights = predictor.model.state_dict()
    for task in (ClassificationTask, SegmentationTask):
        tuned = task(VIT, 2, SMALL, attention="near_far", init_from=str(run / "best.ckpt"))
        assert all(
            torch.equal(value, weights[name]) for name, value in tuned.backbone.state_dict().items() if "blocks" in name
        )


def test_resuming_gives_what_an_uninterrupted_run_gives(run, start, tmp_path, monkeypatch):
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Killed(ValueError):
        pass

    def save_and_die(self, trainer, checkpoint_path):
        if trainer.global_step > 20:
            trainer.save_checkpoint(tmp_path / "run/last.ckpt")
            raise Killed("killed")

    with monkeypatch.context() as patch:
        patch.setattr(ModelCheckpoint, "_save_checkpoint", save_and_die)
        assert train(tmp_path, config(start)) == 1
    assert train(tmp_path, config(start), "--resume") == 0
    whole, resumed = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (run, tmp_path / "run"))
    assert resumed["global_step"] == whole["global_step"] == 60
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][key], value, rtol=0, atol=0)
    assert resumed["distillation"] == whole["distillation"]
    assert not any("teacher" in key for key in whole["state_dict"])


def test_another_teacher_is_refused(run, start, tmp_path, capsys):
    weights = torch.load(start / "start.pth", weights_only=True)
    torch.save({**weights, "norm.weight": weights["norm.weight"] * 2}, tmp_path / "other.pth")
    words = ["--ckpt_path", run / "last.ckpt", "--trainer.max_epochs", 30]
    assert train(tmp_path, config(start, init_from=str(tmp_path / "other.pth")), *words) == 1
    assert "expected the weights that the run started from" in capsys.readouterr().err


def test_the_teacher_is_the_start_with_full_attention_and_stays(start):
    task = DistillationTask(VIT, model_kwargs=COARSE, init_from=str(start / "start.pth"))
    plain = timm.create_model(VIT, **SMALL, num_classes=0, dynamic_img_size=True).eval()
    plain.load_state_dict(torch.load(start / "start.pth", weights_only=True))
    image = torch.randn(2, 3, 24, 40)
    torch.testing.assert_close(task.teacher.forward_features(image), plain.forward_features(image))
    assert not any(parameter.requires_grad for parameter in task.teacher.parameters())
    assert task.state_dict().keys() == {f"model.{name}" for name in plain.state_dict()}
    task.train()
    wanted, found = task._both(image)
    task.distance(found, wanted).backward()
    assert not task.teacher.training and all(parameter.grad is None for parameter in task.teacher.parameters())
    trained = {name for name, parameter in task.model.named_parameters() if parameter.grad is not None}
    assert trained == set(task.trained)


def test_the_loss_by_hand(start):
    task = DistillationTask(
        VIT, model_kwargs=COARSE, init_from=str(start / "start.pth"), block_weight=2, final_weight=3
    )
    image = torch.randn(2, 3, SIZE, SIZE)
    wanted, found = task._both(image)
    blocks = []
    hooks = [block.register_forward_hook(lambda *call: blocks.append(call[2])) for block in task.model.blocks]
    final = task.model.forward_features(image)
    for hook in hooks:
        hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(found.blocks, blocks, strict=True))
    angles = sum(
        1 - functional.cosine_similarity(*pair, dim=2).mean() for pair in zip(blocks, wanted.blocks, strict=True)
    )
    patches = task.teacher.forward_features(image)[:, 1:]
    spread = patches - patches.mean(1, keepdim=True)
    unexplained = ((final[:, 1:] - patches) ** 2).sum((1, 2)) / (spread**2).sum((1, 2))
    torch.testing.assert_close(task.distance(found, wanted), 2 * angles / 2 + 3 * unexplained.mean())
    torch.testing.assert_close(unexplained, unexplained_variance(found.final[:, 1:], wanted.final[:, 1:]))


def test_a_classifiers_own_norm_is_not_trained():
    task = DistillationTask(VIT, model_kwargs={**COARSE, "global_pool": "avg"})
    assert "fc_norm.weight" in dict(task.model.named_parameters())
    assert {name.split(".")[0] for name in task.trained} == {"blocks"}


def test_other_parameters_by_name_and_models_without_prefix():
    arguments = {**COARSE, "class_token": False, "global_pool": "avg"}
    task = DistillationTask(VIT, model_kwargs=arguments, trained=["blocks"], freeze=["blocks.0"])
    assert task.trained and all(name.startswith("blocks.1.") for name in task.trained)
    assert task.trained == sorted(name for name, parameter in task.model.named_parameters() if parameter.requires_grad)
    blocks, final = features_of(task.model, torch.randn(1, 3, SIZE, SIZE))
    assert [block.shape for block in blocks] == [final.shape] * 2 == [(1, 64, 32)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention": "full", "model_kwargs": SMALL}, "expected a ViT of timm's with attention='near_far'"),
        ({"model_name": "cast_vit_atto_patch4_32", "model_kwargs": {}}, "name vit_… in place of cast_vit_…"),
        ({"trained": ["head"]}, "the pattern 'head' of trained matches no parameter"),
        ({"block_weight": 0, "final_weight": 0}, "expected weights >= 0, one above 0"),
        ({"model_name": "resnet10t", "model_kwargs": {}}, "none of the families"),
    ],
)
def test_what_cannot_be_distilled_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistillationTask(**{"model_name": VIT, "model_kwargs": COARSE, **arguments})


def test_a_checkpoint_is_no_task_without_its_teacher(run):
    with pytest.raises(ValueError, match="a checkpoint does not hold the teacher"):
        DistillationTask.load_from_checkpoint(run / "best.ckpt")


def test_as_many_clusters_as_tokens_leave_nothing_to_learn():
    torch.manual_seed(0)
    task = DistillationTask(VIT, model_kwargs={**SMALL, "num_clusters": 64, "anchors": 0})
    wanted, found = task._both(torch.randn(1, 3, SIZE, SIZE))
    torch.testing.assert_close(found.final, wanted.final)
    assert task.distance(found, wanted).item() < 1e-5
