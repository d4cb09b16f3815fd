"""A run that was stopped goes on, one that is done is not replaced, and no run takes another's work for its own."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from castvision.inference.prediction import PredictionRun
from castvision_cli.predict import main as predict
from tests.inference.prediction_cases import files_of, pixels_of


def test_output_is_never_overwritten(tmp_path, segmenter, photo, capsys):
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "masks/astronaut.png").write_text("mine")
    arguments = [str(photo), "--model", str(segmenter), "--output", str(out)]
    assert predict(arguments) == 2
    assert "not empty" in capsys.readouterr().err
    assert (out / "masks/astronaut.png").read_text() == "mine"
    assert predict([*arguments, "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert predict([*arguments, "--overwrite"]) == 0


def test_what_an_overwritten_run_left_does_not_count_as_done(tmp_path, segmenter, photo, monkeypatch):
    """Of an image that the newer run had not come to, --resume kept the masks of the older one: another model's."""
    second = tmp_path / "second.png"
    second.write_bytes(photo.read_bytes())
    inputs = [str(photo), str(second), "--model", str(segmenter), "--output", str(tmp_path / "out")]
    assert predict(inputs) == 0
    original, seen = PredictionRun._segment, []

    def stopping(self, *arguments):
        seen.append(1)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(PredictionRun, "_segment", stopping)
    assert predict([*inputs, "--tile", "64", "--overwrite"]) == 130
    assert predict([*inputs, "--tile", "64", "--resume"]) == 0
    records = json.loads((tmp_path / "out/summary.json").read_text())["images"]
    assert len(seen) == 3
    assert records[0]["tiles_run"] == records[1]["tiles_run"]
    np.testing.assert_array_equal(*(pixels_of(tmp_path / f"out/{record['files'][0]}") for record in records))


def test_a_killed_run_is_resumed_with_the_same_bits(tmp_path, segmenter, photo, monkeypatch, capsys):
    second = tmp_path / "second.png"
    second.write_bytes(photo.read_bytes())
    inputs = [str(photo), str(second), "--model", str(segmenter)]
    assert predict([*inputs, "--output", str(tmp_path / "whole")]) == 0
    out = tmp_path / "out"
    calls = []

    def dying(self, batch):
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return inner(self, batch)

    from castvision.inference import tile_model

    inner = tile_model.TileModel.__call__
    monkeypatch.setattr(tile_model.TileModel, "__call__", dying)
    assert predict([*inputs, "--output", str(out)]) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert any(name.endswith(".part") for name in files_of(out / "masks"))
    monkeypatch.setattr(tile_model.TileModel, "__call__", lambda self, batch: calls.append(1) or inner(self, batch))
    assert predict([*inputs, "--output", str(out), "--resume", "--tta", "d4"]) == 2
    assert "tta was 'none', is 'd4'" in capsys.readouterr().err
    calls.clear()
    assert predict([*inputs, "--output", str(out), "--resume"]) == 0
    assert len(calls) == 4  # three bands left, and one again for its strip
    assert files_of(out) == files_of(tmp_path / "whole")
    for name in files_of(out):
        if name.startswith(("masks", "overlays")) or name == "predictions.csv":
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_another_mask_is_noticed(tmp_path, segmenter, photo, monkeypatch, capsys):
    """A finished image is done again; one that was begun is refused: half of it would be of the other mask."""
    mask, out = tmp_path / "mask.png", tmp_path / "out"
    draw = np.zeros((75, 55), np.uint8)
    draw[:38] = 1
    Image.fromarray(draw).save(mask)
    arguments = [str(photo), "--model", str(segmenter), "--tile", "64", "--output", str(out)]
    told = [*arguments, "--mask", str(mask)]
    assert predict(told) == 0
    whole = pixels_of(out / "masks/astronaut.png")
    assert (whole[76:] == 255).all()
    assert predict([*told, "--resume"]) == 0
    Image.fromarray(1 - draw).save(mask)
    assert predict([*told, "--resume"]) == 0
    other = pixels_of(out / "masks/astronaut.png")
    assert (other[:74] == 255).all()
    assert (other[76:] != 255).all()
    from castvision.inference import tile_model

    inner, calls = tile_model.TileModel.__call__, []

    def dying(self, batch):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return inner(self, batch)

    monkeypatch.setattr(tile_model.TileModel, "__call__", dying)
    assert predict([*told, "--batch-size", "1", "--overwrite"]) == 130
    monkeypatch.setattr(tile_model.TileModel, "__call__", inner)
    Image.fromarray(draw).save(mask)
    capsys.readouterr()
    assert predict([*told, "--batch-size", "1", "--resume"]) != 0
    assert "mask was [" in " ".join("".join(capsys.readouterr()).split())
