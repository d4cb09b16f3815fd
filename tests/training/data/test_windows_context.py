"""Windows with the whole image beside them, from a configuration to masks on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from castvision.data import make_context, open_image
from castvision.inference import tiled_inference
from castvision.inference.predictor import load_model
from castvision.inference.tile_model import TileModel, model_range
from castvision.models.checkpoint import initialize_from
from castvision.models.context import create_context_segmenter
from castvision.models.segmenter import create_segmenter
from castvision.training.data.windows import WindowDataModule
from castvision_cli import train as cli
from castvision_cli.evaluate import main as evaluate
from castvision_cli.predict import main as predict
from tests.inference.prediction_cases import pixels_of

TILE, CUE = 32, 24
MODEL = {"img_size": 32, "in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_clusters": 8}
CONTEXT = ("--model.context_size", "[32, 32]", "--data.context_size", "[32, 32]")


def write_images(root, count, seed, side=192):
    """Marks whose class is decided by a cue elsewhere: 1 in images with a black square, 2 in those with a white one.

    Around the square labels are ignored, so that no window holds both it and a labelled pixel; by tiles alone nothing
    better than a guess is possible.
    """
    rng = np.random.default_rng(seed)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        marks = np.kron(rng.random((side // 4, side // 4)) < 0.3, np.ones((4, 4), bool))
        pixels = rng.normal(110, 12, (side, side)) + 60 * marks
        labels = (marks * (1 + number % 2)).astype(np.uint8)
        y, x = rng.integers(0, side - CUE, 2)
        labels[max(y - TILE, 0) : y + CUE + TILE, max(x - TILE, 0) : x + CUE + TILE] = 255
        pixels[y : y + CUE, x : x + CUE] = 255 * (number % 2)
        tifffile.imwrite(root / "images" / f"{number}.tif", pixels.clip(0, 255).astype(np.uint8), tile=(64, 64))
        tifffile.imwrite(root / "masks" / f"{number}.tif", labels, tile=(64, 64))
    return root


def train(root, folder, steps, *flags, config="windows_context"):
    arguments = {
        "--config": config, "--run_dir": folder, "--data.root": root, "--data.size": TILE, "--data.num_workers": 0,
        "--data.train_length": 8 * steps, "--data.shares": "{train: 3, val: 1}", "--trainer.max_epochs": 2,
        "--trainer.accelerator": "cpu", "--trainer.precision": "32-true", "--model.num_classes": 3,
        "--model.model_name": "cast_vit_atto_patch4_32", "--model.model_kwargs": json.dumps(MODEL),
        "--model.optimizer.init_args.lr": 0.004, "--model.schedule.warmup": 0.2,
    }  # fmt: skip
    return cli.main([str(word) for pair in arguments.items() for word in pair] + [str(flag) for flag in flags])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Images, and a model hardly trained on them."""
    folder = tmp_path_factory.mktemp("context")
    write_images(folder / "data", 4, seed=0, side=128)
    assert train(folder / "data", folder / "run", 2, *CONTEXT, "--data.batch_size", 4) == 0
    return folder


def test_the_checkpoint_knows_its_context(run):
    predictor = load_model(run / "run/best.ckpt")
    assert predictor.parts.context_size == (32, 32)
    prepared = predictor.prepare(np.full((60, 48), 40, np.uint8))
    whole = {"context": make_context(prepared, (32, 32)), "window": torch.tensor([[0.0, 0.0, 1.0, 1.0]])}
    with torch.inference_mode():
        expected = predictor.model(prepared, **whole).softmax(1).mean((2, 3))[0]
    torch.testing.assert_close(predictor.predict(prepared).probabilities, expected)


def test_held_out_windows_are_what_prediction_makes_of_their_image(run):
    sizes = {"size": TILE, "context_size": (32, 32), "shares": {"train": 3, "val": 1}}
    data = WindowDataModule(str(run / "data"), num_workers=0, train_length=16, **sizes)
    predictor = load_model(run / "run/best.ckpt")
    model, seen = predictor.model, []

    def record(image, context, window):
        seen.extend((tile, context[0], place) for tile, place in zip(image, window, strict=True))
        return model(image, context=context, window=window)

    predictor.model = record
    dataset = data.dataset("val")
    with open_image(dataset.sources.images[dataset.regions[0][0]]) as reader:
        tiles = TileModel(predictor, reader.channels, model_range(predictor, reader))
        tiled_inference(reader, tiles, tile=TILE, overlap=0, context_size=predictor.parts.context_size)
    held_out = {tuple(item[2]["window"].tolist()): item for item in dataset}
    assert len(held_out) > 8
    for image, context, window in seen:
        item = held_out.pop(tuple(window.tolist()), None)
        if item is not None:  # those without a label are left out in training
            torch.testing.assert_close(image, item[0])
            torch.testing.assert_close(context, item[2]["context"])
    assert not held_out


def test_a_killed_run_goes_on_with_its_context(run, tmp_path, monkeypatch):
    def save_and_die(self, trainer, checkpoint_path):
        trainer.save_checkpoint(tmp_path / "cut/last.ckpt")
        raise ValueError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(ModelCheckpoint, "_save_checkpoint", save_and_die)
        assert train(run / "data", tmp_path / "cut", 2, *CONTEXT, "--data.batch_size", 4) == 1
    assert torch.load(tmp_path / "cut/last.ckpt", weights_only=True)["castvision"]["context_size"] == [32, 32]
    assert train(run / "data", tmp_path / "cut", 2, *CONTEXT, "--data.batch_size", 4, "--resume") == 0
    assert json.loads((tmp_path / "cut/metrics.json").read_text())["training"]["steps"] == 8


def test_weights_from_with_to_without_context_and_back(run, tmp_path):
    kwargs = {"num_classes": 3, "model_kwargs": {**MODEL, "use_rot_pos_emb": True, "pos_embed": "none"}}
    plain = create_segmenter("cast_vit_atto_patch4_32", **kwargs)
    report = initialize_from(plain, run / "run/best.ckpt")
    assert (report.left, report.fresh) == (("context_embed",), ())
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    shown = create_context_segmenter("cast_vit_atto_patch4_32", context_size=(16, 16), **kwargs)
    report = initialize_from(shown, tmp_path / "plain.pt")
    assert (report.left, report.fresh) == ((), ("context_embed",))


def test_masks_on_disk_with_turns_and_after_an_interruption(run, tmp_path, monkeypatch):
    image = str(run / "data/images/0.tif")

    def masks(name, *flags):
        arguments = ("--model", str(run / "run/best.ckpt"), "--output", str(tmp_path / name), "--no-overlay", *flags)
        assert predict([image, *arguments]) == 0
        return pixels_of(tmp_path / name / "masks/0.png")

    plain = masks("plain", "--batch-size", "2")
    assert plain.shape == (128, 128)
    assert json.loads((tmp_path / "plain/records/0.json").read_text())["seam"]["pixels"] > 0
    assert masks("turned", "--tta", "d4").shape == plain.shape
    with monkeypatch.context() as patch:
        calls = []

        def stop(self, batch, **extras):
            calls.append(len(batch))
            if len(calls) == 8:
                raise KeyboardInterrupt
            return call(self, batch, **extras)

        call = TileModel.__call__
        patch.setattr(TileModel, "__call__", stop)
        stopped = ["--model", str(run / "run/best.ckpt"), "--output", str(tmp_path / "resumed"), "--no-overlay"]
        assert predict([image, *stopped, "--batch-size", "2"]) == 130
    assert np.array_equal(masks("resumed", "--resume", "--batch-size", "2"), plain)


def test_evaluate_shows_each_tile_the_whole_image(run, tmp_path, monkeypatch):
    windows = []
    call = TileModel.__call__

    def record(self, batch, **extras):
        windows.append(extras["window"])
        return call(self, batch, **extras)

    monkeypatch.setattr(TileModel, "__call__", record)
    folders = ["--images", str(run / "data/images"), "--masks", str(run / "data/masks")]
    assert evaluate([*folders, "--model", str(run / "run/best.ckpt"), "--output", str(tmp_path / "out")]) == 0
    assert torch.cat(windows)[:, 2:].unique().tolist() == [0.25]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--data.context_size", "null"), "got model.context_size=(32, 32), data.context_size=None"),
        (("--data.context_size", "[32, 64]"), "square context_size with symmetries"),
        (("--model.context_size", "[0, 32]"), "context_size >= 1"),
        (("--model.model_kwargs.summaries", "none"), "summaries"),
        (("--model.model_name", "vit_tiny_patch16_224", "--model.model_kwargs", "{}"), "cast_vit_* backbone"),
    ],
)
def test_what_does_not_fit_is_one_line(run, tmp_path, capsys, flags, message):
    assert train(run / "data", tmp_path / "run", 2, *CONTEXT, "--data.batch_size", 4, *flags) == 2
    *before, error = capsys.readouterr().err.splitlines()
    assert message in error
    assert before == ["reading 4 images for their overviews"][: len(before)]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_context_solves_from_training_to_disk_what_tiles_alone_cannot(tmp_path):
    root = write_images(tmp_path / "data", 16, seed=0)
    new = write_images(tmp_path / "new", 8, seed=1)
    shares = {}
    for name, flags in (("windows_context", CONTEXT), ("windows", ())):
        assert train(root, tmp_path / name, 300, *flags, config=name) == 0
        arguments = ["--model", str(tmp_path / name / "best.ckpt"), "--output", str(tmp_path / f"{name}_masks")]
        assert predict([str(new / "images"), *arguments, "--no-overlay"]) == 0
        found = np.stack([pixels_of(tmp_path / f"{name}_masks/masks/{number}.png") for number in range(8)])
        truth = np.stack([tifffile.imread(new / f"masks/{number}.tif") for number in range(8)])
        shares[name] = float((found == truth)[(truth == 1) | (truth == 2)].mean())
    assert shares["windows_context"] > 0.9
    assert 0.35 < shares["windows"] < 0.65
