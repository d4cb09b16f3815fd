"""From pictures of slides to labels and where they come from: embed, train, evaluate and predict, by the commands."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("h5py")

from castvision_cli import main
from tests.training.slide_cases import SIDE, TILE, write_encoder, write_list, write_slides

QUIET = ["--trainer.accelerator", "cpu", "--data.num_workers", "0", "--trainer.enable_progress_bar", "false"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders of a run with attention and of its control, trained on slides of which a hundredth is what counts."""
    root = tmp_path_factory.mktemp("slides")
    encoder = write_encoder(root / "encoder.ckpt")
    truth = {"train": write_slides(root / "train", 60), "test": write_slides(root / "test", 40, 1000)}
    for part, slides in truth.items():
        words = ["embed", str(root / part), "--model", encoder, "--output", str(root / f"{part}_out")]
        assert (
            main([*words, "--write", "tiles", "--tile", str(TILE), "--pool", "class+mean", "--batch-size", "64"]) == 0
        )
        write_list(root / f"{part}.csv", slides)
    for pool in ("gated_attention", "mean"):
        words = ["train", "--config", "slide_labels", "--run_dir", str(root / pool), "--model.model_name", pool]
        words += ["--data.root", str(root / "train.csv"), "--data.features", str(root / "train_out/tiles"), *QUIET]
        words += ["--model.model_kwargs.in_chans", "96", "--model.optimizer.lr", "0.002"]
        assert main([*words, "--trainer.max_epochs", "10", "--trainer.check_val_every_n_epoch", "5"]) == 0
    return root, truth["test"]


def figures(root, pool):
    words = ["--images", str(root / "test_out/tiles"), "--labels", str(root / "test.csv")]
    model = str(root / pool / "best.ckpt")
    assert main(["evaluate", "--model", model, *words, "--output", str(root / f"{pool}_report")]) == 0
    return json.loads((root / f"{pool}_report/metrics.json").read_text())


def test_a_small_region_is_found_and_the_control_misses_it(trained, record_property):
    root, _ = trained
    attention, control = (figures(root, pool)["metrics"]["acc1"] for pool in ("gated_attention", "mean"))
    record_property("accuracy with attention", attention)
    record_property("accuracy of the mean", control)
    assert attention >= 0.9  # .95, of the mean .50
    assert control <= 0.75
    report = json.loads((root / "gated_attention_report/metrics.json").read_text())
    assert np.sum(report["confusion"]) == len(report["slides"]) == 40
    assert (root / "gated_attention_report/confusion.png").is_file()


def test_attention_peaks_where_the_answer_is(trained):
    root, truth = trained
    output, model = root / "predicted", str(root / "gated_attention/best.ckpt")
    assert main(["predict", str(root / "test_out/tiles"), "--model", model, "--output", str(output), "--geojson"]) == 0
    rows = {row["slide"]: row for row in csv.DictReader((output / "predictions.csv").read_text().splitlines())}
    assert set(rows) == set(truth)
    hits = []
    for name, (label, (y, x)) in truth.items():
        row = rows[name]
        both = float(row["probability_normal"]) + float(row["probability_tumor"])
        assert both == pytest.approx(1, abs=1e-5)
        tiles = json.loads((output / f"attention/{name}.geojson").read_text())["features"]
        assert sum(tile["properties"]["attention"] for tile in tiles) == pytest.approx(1, abs=1e-4)
        if label == "tumor":
            best = max(tiles, key=lambda tile: tile["properties"]["attention"])
            left, top = best["geometry"]["coordinates"][0][0]
            hits.append(np.hypot(left + TILE / 2 - x, top + TILE / 2 - y) < TILE)
            picture = np.asarray(Image.open(output / f"attention/{name}.png"))
            cell = len(picture) // (SIDE // TILE)
            brightest = picture[cell // 2 :: cell, cell // 2 :: cell].astype(int).sum(-1).argmax()
            assert np.unravel_index(brightest, (SIDE // TILE,) * 2) == (top // TILE, left // TILE)
    assert np.mean(hits) >= 0.9


def test_a_checkpoint_remembers_what_it_was_trained_on(trained):
    from castvision.models.recipe import load

    recipe, _ = load(trained[0] / "gated_attention/best.ckpt")
    assert (recipe.task, recipe.model_name, recipe.class_names) == ("slides", "gated_attention", ("normal", "tumor"))
    assert recipe.input.in_chans == 96
    assert recipe.input.encoder.startswith("vit_tiny_patch16_224, pooled by class+mean, weights ")
    report = json.loads((trained[0] / "gated_attention/metrics.json").read_text())
    assert report["best"]["val/acc1"] >= 0.9


def test_other_embeddings_and_images_are_refused_in_one_line(trained, tmp_path, capsys):
    from tests.training.slide_cases import write_bags

    root, _ = trained
    model = ["--model", str(root / "gated_attention/best.ckpt"), "--output", str(tmp_path / "out")]
    write_bags(tmp_path / "other", ["a"], channels=96, encoder="dino")
    assert main(["predict", str(tmp_path / "other/s0.h5"), *model]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "expected embeddings as in training, got the models dino and vit_tiny_patch16_224" in told
    bags = str(root / "test_out/tiles")
    for words, message in (
        (["predict", str(root / "test/s1000.png")], "expected embeddings of slides (*.h5) for this model"),
        (["predict", "no.h5"], "no such image or folder: 'no.h5'"),
        (["predict", bags, "--tile", "64"], "expected no --tile with embeddings of slides"),
        (["evaluate", "--images", bags], "expected --images DIR, the folder of embeddings (*.h5), and --labels"),
        (["evaluate", "--labels", str(root / "test.csv")], "give both"),
    ):
        other = ["--model", model[1], "--output", str(tmp_path / "new")]
        assert main([*words, *other]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "new").exists()


def test_the_number_of_channels_is_compared_before_training(trained, tmp_path, capsys):
    root, _ = trained
    words = ["train", "--config", "slide_labels", "--run_dir", str(tmp_path / "run"), *QUIET]
    words += ["--data.root", str(root / "train.csv"), "--data.features", str(root / "train_out/tiles")]
    assert main(words) == 2
    assert "set in_chans: 96 in model_kwargs" in capsys.readouterr().err
    assert main(["data", "show", "--config", "slide_labels", "--output", str(tmp_path / "a.png"), *words[7 + 4 :]]) == 1
    assert "bags of embeddings" in capsys.readouterr().err
