"""Whole runs through the command line, on a task that is learned in a second."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image

from castvision.models.segmenter import create_segmenter
from castvision.training.cli import PredictionFile
from castvision_cli import train as cli


def train(*arguments):
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of each task; that of images as where TensorBoard is not installed."""
    from tests.training.conftest import recipe

    folder = tmp_path_factory.mktemp("runs")
    for task in ("pixel", "image"):
        config = folder / f"{task}.yaml"
        config.write_text(yaml.safe_dump(recipe(task)))
        with pytest.MonkeyPatch.context() as patch:
            if task == "image":
                patch.setattr("castvision.training.cli.find_spec", lambda name: None)
            assert train("--config", config, "--run_dir", folder / task) == 0
    return folder


@pytest.mark.parametrize("task", ["pixel", "image"])
def test_a_run_learns_and_leaves_its_files(run, task):
    folder = run / task
    names = {path.name for path in folder.iterdir()}
    files = {"best.ckpt", "last.ckpt", "config.yaml", "logs", "metrics.json", "report.png"}
    assert names == (files | {"tensorboard"} if task == "pixel" else files)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["best"]["val/miou" if task == "pixel" else "val/acc1"] > (0.8 if task == "pixel" else 0.95)
    assert metrics["training"]["steps"] == 40
    assert metrics["training"]["images"] == 640
    assert metrics["training"]["images_per_second"] > 0
    assert [row["name"] for row in metrics["per_class"]] == metrics["class_names"]
    assert min(row["f1"] for row in metrics["per_class"]) > 0.8
    if task == "pixel":
        assert metrics["best"]["val/macro_f1"] == pytest.approx(sum(row["f1"] for row in metrics["per_class"]) / 2)
    assert sum(map(sum, metrics["confusion"])) == (64 * 256 if task == "pixel" else 64)
    with Image.open(folder / "report.png") as picture:
        assert min(picture.size) > 500
    header = (folder / "logs/version_0/metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/lr", "val/loss"} <= set(header)


def test_checkpoints_are_rebuilt_without_lightning(run):
    for task in ("pixel", "image"):
        content = torch.load(run / task / "best.ckpt", weights_only=True)
        facts = content["castvision"]
        assert facts["class_names"] == (["background", "joining path"] if task == "pixel" else ["dark", "bright"])
        assert (facts["in_chans"], facts["img_size"], facts["mean"]) == (1, [16, 16], [0.5])
        kwargs = facts["model_kwargs"]
        if facts["task"] == "segmentation":
            parts = {key: facts[key] for key in ("head", "head_kwargs", "out_indices")}
            model = create_segmenter(facts["model_name"], facts["num_classes"], model_kwargs=kwargs, **parts)
        else:
            model = timm.create_model(facts["model_name"], num_classes=facts["num_classes"], **kwargs)
        weights = {
            key.removeprefix("model."): value
            for key, value in content["state_dict"].items()
            if key.startswith("model.")
        }
        model.load_state_dict(weights)


def test_test_figures_and_predictions(run, tmp_path, capsys):
    folder = run / "pixel"
    assert train("test", "--config", folder / "config.yaml") == 0
    figures = json.loads((folder / "test_metrics.json").read_text())["figures"]
    assert figures["test/iou_joining_path"] > 0.7
    assert len(json.loads((folder / "test_metrics.json").read_text())["per_class"]) == 2
    assert train("validate", "--config", folder / "config.yaml") == 0
    assert (
        train("predict", "--config", folder / "config.yaml", "--ckpt_path", folder / "last.ckpt", "--run_dir", tmp_path)
        == 0
    )
    predictions = torch.load(tmp_path / "predictions.pt", weights_only=True)
    assert (predictions.dtype, predictions.shape) == (torch.uint8, (64, 16, 16))
    capsys.readouterr()
    assert (
        train("predict", "--config", folder / "config.yaml", "--run_dir", tmp_path, "--ckpt_path", folder / "last.ckpt")
        == 2
    )
    assert "exists; move it away" in capsys.readouterr().err


def test_without_held_out_images_the_last_state_is_kept(run, tmp_path):
    """Nothing was saved: checkpoints were written after a round of held-out images alone."""
    words = ["--config", run / "pixel/config.yaml", "--run_dir", tmp_path, "--trainer.limit_val_batches", 0]
    assert train(*words, "--trainer.max_epochs", -1, "--trainer.max_steps", 3) == 0
    assert not (tmp_path / "best.ckpt").exists()
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def test_a_few_batches_are_overfitted(run, tmp_path):
    words = ["--config", run / "pixel/config.yaml", "--run_dir", tmp_path, "--trainer.overfit_batches", 2]
    assert train(*words, "--trainer.max_epochs", 3) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["training"]["steps"] == 6


def test_predictions_of_any_sizes(tmp_path):
    """A tensor where all are of one size, else a list."""
    for name, sizes in (("even.pt", [2, 2]), ("odd.pt", [2, 3])):
        batches = [torch.full((1, size, 4), size) for size in sizes]
        PredictionFile(tmp_path / name).write_on_epoch_end(None, None, batches, [])
        written = torch.load(tmp_path / name, weights_only=True)
        assert isinstance(written, torch.Tensor if name == "even.pt" else list)
        for one, batch in zip(written, batches, strict=True):
            assert torch.equal(one, batch[0].to(torch.uint8))


def test_a_finished_run_is_never_touched(run, capsys):
    folder = run / "pixel"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    for flags in ((), ("--resume",)):
        assert train("--config", folder / "config.yaml", *flags) == 2
    assert capsys.readouterr().err.count("finished") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_saved_configuration_runs_again_and_gives_the_same(run, tmp_path):
    assert train("--config", run / "pixel/config.yaml", "--run_dir", tmp_path / "again") == 0
    first, second = (
        torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (run / "pixel", tmp_path / "again")
    )
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resuming_gives_what_an_uninterrupted_run_gives(run, tmp_path, monkeypatch):
    from lightning.pytorch.callbacks import ModelCheckpoint

    class Killed(ValueError):
        pass

    def save_and_die(self, trainer, checkpoint_path):
        trainer.save_checkpoint(tmp_path / "cut/last.ckpt")
        raise Killed("killed")

    config, folder = run / "pixel.yaml", tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(ModelCheckpoint, "_save_checkpoint", save_and_die)
        assert train("--config", config, "--run_dir", folder) == 1
    assert not (folder / "metrics.json").exists()
    assert train("--config", config, "--run_dir", folder) == 2  # not overwritten
    assert train("--config", config, "--run_dir", folder, "--resume") == 0
    whole, resumed = (torch.load(path / "last.ckpt", weights_only=True) for path in (run / "pixel", folder))
    assert resumed["global_step"] == whole["global_step"] == 40
    for key, value in whole["state_dict"].items():
        torch.testing.assert_close(resumed["state_dict"][key], value, rtol=0, atol=0)
    assert json.loads((folder / "metrics.json").read_text())["training"]["images"] == 640


def test_the_last_checkpoint_is_the_last_even_where_nothing_improves(write_config, tmp_path):
    still = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.0}}
    flags = ("--trainer.enable_progress_bar", "false")  # Lightning's flag works beside our bar
    assert train("--config", write_config(optimizer=still), "--run_dir", tmp_path / "still", *flags) == 0
    last, best = (torch.load(tmp_path / "still" / name, weights_only=True) for name in ("last.ckpt", "best.ckpt"))
    assert (best["global_step"], last["global_step"]) == (20, 40)


def test_balanced_losses_and_contours_from_a_configuration(write_config, tmp_path):
    config = write_config(
        loss={"ce": 1.0, "dice": 1.0},
        class_weights="balanced",
        boundary_tolerance=1,
        head="UperHead",
        head_kwargs={"width": 16},
    )
    folder = tmp_path / "run"
    assert train("--config", config, "--run_dir", folder) == 0
    best = json.loads((folder / "metrics.json").read_text())["best"]
    assert best["val/boundary_f1"] == pytest.approx(
        (best["val/boundary_f1_background"] + best["val/boundary_f1_joining_path"]) / 2
    )
    weights = torch.load(folder / "best.ckpt", weights_only=True)["state_dict"]["losses.class_weights"]
    share = 0.334  # of pixels above 0.3 in noise of deviation 0.7
    torch.testing.assert_close(weights, torch.tensor([0.5 / (1 - share), 0.5 / share]), rtol=0.02, atol=0)
    assert train("test", "--config", folder / "config.yaml") == 0


def test_resume_fails_loudly(write_config, tmp_path, capsys):
    assert train("--config", write_config(), "--run_dir", tmp_path / "none", "--resume") == 2
    assert "nothing to resume: no last.ckpt" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_stopped_in_the_middle_of_an_epoch_still_counts_and_keeps_the_best(write_config, tmp_path):
    folder = tmp_path / "run"
    assert train("--config", write_config("image"), "--run_dir", folder, "--trainer.max_steps", 7) == 0
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 7
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["best"]["step"] == metrics["training"]["steps"] == 7
    assert (folder / "best.ckpt").exists()


def test_the_clock_ends_a_run_with_the_rate_at_its_floor(write_config, tmp_path):
    folder = tmp_path / "run"
    start = time.perf_counter()
    limits = ("--trainer.max_time", "00:00:00:02", "--trainer.max_epochs", 10_000, "--trainer.log_every_n_steps", 1)
    assert train("--config", write_config("image"), "--run_dir", folder, *limits) == 0
    assert time.perf_counter() - start < 60  # ten thousand epochs would be more
    lines = (folder / "logs/version_0/metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("train/lr")
    rates = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert max(rates) > 0.002
    assert rates[-1] < max(rates) / 4  # by epochs it would hardly have begun to fall; steps may be slow, so not near 0


def test_averaged_weights_early_stopping_and_a_start_from_a_checkpoint(run, write_config, tmp_path, caplog):
    folder = tmp_path / "run"
    config = write_config("image")
    flags = ("--ema", 0.9, "--early_stopping", 1, "--trainer.max_epochs", 50, "--init-from", run / "image/best.ckpt")
    assert train("--config", config, "--run_dir", folder, *flags) == 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["training"]["steps"] < 50 * 20
    assert metrics["started_from"].endswith("0 left, 0 new")
    content = torch.load(folder / "last.ckpt", weights_only=True)
    assert "current_model_state" in content
    assert any(
        not torch.equal(content["state_dict"][key], value) for key, value in content["current_model_state"].items()
    )


def test_accumulation_clipping_half_precision_and_frozen_parts(write_config, tmp_path):
    config = write_config(
        "image", freeze=["patch_embed", "blocks.0"], layer_decay=0.7, label_smoothing=0.1, mixing={"mixup": 0.2}
    )
    flags = (
        "--trainer.accumulate_grad_batches",
        2,
        "--trainer.gradient_clip_val",
        1.0,
        "--trainer.precision",
        "bf16-mixed",
    )
    assert train("--config", config, "--run_dir", tmp_path / "run", *flags) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["training"]["steps"] == 20


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model.lrr", "3"], "'lrr' is not accepted"),
        (["--trainer.max_epoch", "3"], "max_epoch"),
        (["--data.batchsize", "3"], "'batchsize' is not accepted"),
        (["--model.model_name", "vit_tiny_patch16_225"], "did you mean vit_tiny_patch16_224"),
        (["--model.num_classes", "3"], "expected model.num_classes: 2 for the classes background, joining path"),
        (["--model.model_kwargs.in_chans", "3"], "set in_chans: 1 in model_kwargs"),
        (["--init-from", "missing.ckpt"], "no such file"),
        (["--init-from"], "expected a value after --init-from"),
        (["--ema", "3"], "0 < ema < 1"),
        (["--config", "qickstart"], "did you mean quickstart"),
        (["--config", "missing/file.yaml"], "no configuration"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(write_config, tmp_path, capsys, flags, message):
    assert train("--config", write_config(), "--run_dir", tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_is_typed_holds_wherever_the_configuration_stands(write_config):
    config = write_config()
    line = cli.CommandLine(["--trainer.max_epochs", "3", "--config", str(config), "--ema=0.5", "-c", str(config)])
    assert line.arguments == ["fit", *[f"--config={config}"] * 2, "--trainer.max_epochs", "3", "--ema=0.5"]


def test_a_typo_in_a_file_is_an_error(tmp_path, write_config, capsys):
    path = tmp_path / "typo.yaml"
    path.write_text(Path(write_config()).read_text() + "trainr: {max_epochs: 3}\n")
    assert train("--config", path, "--run_dir", tmp_path / "run") == 2
    assert "trainr" in capsys.readouterr().err


def test_no_evaluation_of_untrained_or_foreign_weights(run, write_config, tmp_path, capsys):
    assert train("test", "--config", write_config(), "--run_dir", tmp_path / "none") == 2
    assert "no best.ckpt" in capsys.readouterr().err
    arguments = ("test", "--config", run / "pixel/config.yaml", "--model.model_kwargs.embed_dim", 64)
    assert train(*arguments) == 2
    assert "another architecture" in capsys.readouterr().err
    assert train("test", "--config", run / "pixel/config.yaml", "--resume") == 2


def test_fewer_epochs_than_done_are_said(run, tmp_path, capsys):
    """Going on from a finished run of as many epochs, or of more, would train nothing in silence."""
    content = torch.load(run / "pixel/last.ckpt", weights_only=True)
    done = content["epoch"] + 1
    for epochs in range(1, done + 1):
        flags = ("--ckpt_path", run / "pixel/last.ckpt", "--run_dir", tmp_path / "more", "--trainer.max_epochs", epochs)
        assert train("--config", run / "pixel.yaml", *flags) == 2
        told = capsys.readouterr().err
        assert f"expected trainer.max_epochs of more than the {done} epochs" in told
        assert f"got max_epochs={epochs}: nothing would be trained" in told
    flags = (*flags[:-1], done + 1)
    assert train("--config", run / "pixel.yaml", *flags) == 0
    assert torch.load(tmp_path / "more/last.ckpt", weights_only=True)["epoch"] == done
