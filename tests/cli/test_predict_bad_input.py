"""Images that cannot be read are named at the end, the others are done, and nothing half-written is left."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from castvision_cli.predict import main as predict
from tests.inference.prediction_cases import files_of, pixels_of


@pytest.fixture
def bad_folder(tmp_path, photo):
    folder = tmp_path / "in"
    folder.mkdir()
    good = photo.read_bytes()
    (folder / "fine.png").write_bytes(good)
    picture = Image.open(photo).convert("RGB")
    picture.save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:900])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("these are no pixels")
    picture.convert("CMYK").save(folder / "print.jpg")
    picture.crop((0, 0, 1, 1)).save(folder / "dot.png")
    Image.fromarray(np.zeros((100_000, 10, 3), np.uint8)).save(folder / "strip.png")
    values = np.asarray(picture, np.float32)
    values[3:5, 7:9] = np.nan
    tifffile.imwrite(folder / "nan.tif", values, photometric="rgb")
    tifffile.imwrite(folder / "five.tif", np.zeros((5, 40, 40), np.uint8), photometric="minisblack")
    tifffile.imwrite(folder / "broken.tif", np.zeros((256, 256, 3), np.uint8), tile=(64, 64), photometric="rgb")
    data = (folder / "broken.tif").read_bytes()
    (folder / "broken.tif").write_bytes(data[: len(data) // 2])
    return folder


def test_bad_images_are_named_and_the_others_done(tmp_path, segmenter, bad_folder, monkeypatch, capsys):
    # the files are the matter here: a model of one line, since the strip alone is thousands of tiles
    def answer(self, batch, **told):
        return batch.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)

    monkeypatch.setattr("castvision.inference.tile_model.TileModel.__call__", answer)
    out = tmp_path / "out"
    arguments = [str(bad_folder), "--model", str(segmenter), "--output", str(out), "--batch-size", "64", "--no-overlay"]
    assert predict(arguments) == 1
    told = " ".join(capsys.readouterr().out.split())
    for name in ("cut.jpg", "empty.png", "text.png", "five.tif", "broken.tif"):
        assert told.count(name) == 1
    assert "Traceback" not in told
    assert "5 of 10 images done" in told
    assert files_of(out / "masks") == ["dot.png", "fine.png", "nan.png", "print.png", "strip.png"]
    assert pixels_of(out / "masks/strip.png").shape == (100_000, 10)
    labels = pixels_of(out / "masks/nan.png")
    assert (labels == 255).sum() == 4
    summary = json.loads((out / "summary.json").read_text())
    assert len(summary["failed"]) == 5


def test_a_bomb_is_refused_by_name(tmp_path, segmenter, photo, monkeypatch, capsys):
    monkeypatch.setattr("castvision.data.reading.pixels.MAX_PIXELS", 1000)
    out = tmp_path / "out"
    assert predict([str(photo), "--model", str(segmenter), "--output", str(out)]) == 2
    assert "astronaut.png" in capsys.readouterr().err
    assert not out.exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, segmenter, photo, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("castvision.inference.prediction.write_png", full)
    out = tmp_path / "out"
    assert predict([str(photo), "--model", str(segmenter), "--output", str(out)]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "No space left on device" in told
    assert "masks/astronaut.png" in told
    assert files_of(out) == ["predictions.csv", "run.json", "summary.json"]


def test_names_of_any_bytes_are_predicted_and_tabulated(tmp_path, segmenter, photo):
    """Where standard output takes nothing but UTF-8 too."""
    names = ("plain.png", os.fsdecode(b"stra\xdfe.png"), "[bold]a\nb.png", f"{'x' * 246}.png", "ü\u0301.png")
    (tmp_path / "in").mkdir()
    for target in names:
        (tmp_path / "in" / target).write_bytes(photo.read_bytes())
    out = tmp_path / "out"
    command = [sys.executable, "-m", "castvision", "predict", str(tmp_path / "in"), "--model", str(segmenter)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([*command, "--output", str(out), "--geojson"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert {record["image"] for record in summary["images"]} == {str(tmp_path / "in" / one) for one in names}
    assert summary["failed"] == []
    assert len(list((out / "masks").glob("*.png"))) == len(names)


def test_resuming_with_other_images_replaces_nothing(tmp_path, segmenter, capsys):
    for folder, seed in (("a", 0), ("b", 1)):
        (tmp_path / folder).mkdir()
        pixels = np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / folder / "x.png")
    first, second = (str(tmp_path / folder / "x.png") for folder in "ab")
    how = ["--model", str(segmenter), "--output", str(tmp_path / "out")]
    assert predict([first, *how]) == 0
    before = files_of(tmp_path / "out"), (tmp_path / "out/masks/x.png").read_bytes()
    capsys.readouterr()
    assert predict([second, *how, "--resume"]) != 0
    assert "whose results would replace those of" in "".join(capsys.readouterr())
    assert before == (files_of(tmp_path / "out"), (tmp_path / "out/masks/x.png").read_bytes())
    assert predict([first, *how, "--resume"]) == 0
