"""Values that cannot be of the kind a model was trained on are remarked on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from castvision.data.input_format import InputFormat
from castvision.data.reading import open_array
from castvision.inference.evaluation import Evaluation
from castvision.inference.files import OutputFolder
from castvision.inference.prediction import Options, PredictionRun
from castvision.inference.predictor import load_model
from castvision.inference.showing import Options as ShowingOptions
from castvision.inference.showing import Showing
from castvision.inference.values import remark_on_values
from castvision_cli.images import remarks

RNG = np.random.default_rng(0)
PHOTOGRAPH = RNG.integers(0, 256, (40, 600, 3)).astype(np.uint8)
IMAGENET = InputFormat(3, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES = InputFormat(1, (32, 32), (0.5,), (0.5,))
KELVIN = InputFormat(1, (32, 32), (285.0,), (10.0,), keeps_units=True)
TRAINED = "of what uint16 holds, in training they were around 0.485 ± 0.229: fewer bits in use, or other units?"
REFLECTANCE = InputFormat(2, (32, 32), (0.02, 0.04), (0.01, 0.02))


@pytest.mark.parametrize(
    ("seen", "pixels"),
    [
        (IMAGENET, PHOTOGRAPH),
        (IMAGENET, PHOTOGRAPH.astype(np.uint16) * 257),
        (IMAGENET, (PHOTOGRAPH // 3).astype(np.uint8)),  # underexposed
        (IMAGENET, PHOTOGRAPH[..., :1]),
        (IMAGENET, PHOTOGRAPH.astype(np.int16)),  # brought to 0..1 by itself
        (KELVIN, RNG.normal(270, 10, (50, 50, 1)).astype(np.float32)),
        (REFLECTANCE, RNG.integers(0, 6000, (50, 50, 2), dtype=np.uint16)),
        (REFLECTANCE, np.where(np.arange(2) == 0, 0, RNG.integers(0, 6000, (50, 50, 2))).astype(np.uint16)),
        (KELVIN, np.full((50, 50, 1), np.nan, np.float32)),
    ],
)
def test_values_as_in_training(seen, pixels):
    assert remark_on_values(open_array(pixels), seen) is None


@pytest.mark.parametrize(
    ("seen", "pixels", "told"),
    [
        (IMAGENET, PHOTOGRAPH.astype(np.uint16) * 16, f"nearly all values are below 0.0618 {TRAINED}"),
        (IMAGENET, PHOTOGRAPH.astype(np.uint16), f"nearly all values are below 0.00386 {TRAINED}"),
        (IMAGENET, PHOTOGRAPH[..., :1].astype(np.uint16), f"nearly all values are below 0.00386 {TRAINED}"),
        (HALVES, PHOTOGRAPH[..., :1].astype(np.uint16) * 16,
         f"nearly all values are below 0.0618 {TRAINED.replace('0.485 ± 0.229', '0.5 ± 0.5')}"),
        (KELVIN, np.linspace(-20, 30, 2500, dtype=np.float32).reshape(50, 50, 1),
         "nearly all values are below 29.5, in training they were around 285 ± 10: other units?"),
        (REFLECTANCE, RNG.integers(30, 200, (50, 50, 2)).astype(np.uint8), "nearly all values are above 0.122 of what "
         "uint8 holds, in training they were around 0.02 ± 0.01: fewer bits in use, or other units?"),
    ],
)  # fmt: skip
def test_values_of_other_depths_and_units(seen, pixels, told):
    assert remark_on_values(open_array(pixels), seen) == told


def test_missing_values_do_not_count():
    pixels = np.ma.masked_equal(PHOTOGRAPH.astype(np.uint16) * 16, 0)
    pixels[:, :300] = 65535
    pixels[:, :300] = np.ma.masked
    reader = open_array(np.ma.getdata(pixels))
    assert remark_on_values(reader, IMAGENET) is None
    reader.nodata = 65535
    assert "below 0.06" in str(remark_on_values(reader, IMAGENET))


def test_a_small_dark_part_is_not_the_image():
    pixels = np.zeros((600, 600, 3), np.uint8)
    pixels[-256:, -256:] = 200
    assert remark_on_values(open_array(pixels), IMAGENET) is None


def test_commands_say_so(tmp_path, segmenter):
    """12 bits in a file of 16, to a model of 8."""
    Image.fromarray(PHOTOGRAPH[..., 0].astype(np.uint16) * 16).save(tmp_path / "twelve.png")
    Image.fromarray(np.zeros((40, 600), np.uint8)).save(tmp_path / "truth.png")
    stored = torch.load(segmenter, weights_only=True)
    stored["castvision"] |= {"mean": [0.5, 0.4, 0.4], "std": [0.25, 0.2, 0.2]}
    torch.save(stored, tmp_path / "model.ckpt")
    image, model = tmp_path / "twelve.png", load_model(str(tmp_path / "model.ckpt"))
    tiles = {"tile": (32, 32), "overlap": 8, "halo": None, "batch_size": 4}
    record = PredictionRun(model, OutputFolder(tmp_path / "out"), Options(tiles=tiles)).predict(image, "twelve")
    assert "below 0.0" in record["values"]
    assert remarks(record).endswith(f"; {record['values']}")
    told = Evaluation(model, {image: "twelve"}, {image: tmp_path / "truth.png"}, tiles).measure(image)
    assert told is not None and told.startswith(f"{image}: ") and told.endswith(record["values"])
    shown = Showing(model, OutputFolder(tmp_path / "shown"), ShowingOptions()).show(image, "twelve")
    assert shown == f"{image}: {record['values']} (--stretch shows each image its own range)"
    assert Showing(model, OutputFolder(tmp_path / "more"), ShowingOptions(stretch=True)).show(image, "twelve") is None
