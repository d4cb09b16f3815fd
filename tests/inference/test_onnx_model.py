"""Exported models predict what the checkpoint predicts, without torch; images reach them as they reach torch's."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import nn

from castvision.data.input_format import InputFormat
from castvision.data.reading.pixels import mark_missing
from castvision.data.transforms.augmentation import SampleTransform
from castvision.data.transforms.crop import cropping_transform, rgb_picture
from castvision.data.transforms.cropping import crop
from castvision.data.transforms.fitting import fit, resized_linearly
from castvision.data.transforms.model_input import planes_to_input, to_input_array, to_model_input
from castvision.errors import CheckpointError
from castvision.inference import tiled_inference
from castvision.inference.onnx_model import OnnxPredictor
from castvision.inference.runtimes import softmax
from castvision.models.recipe import Recipe
from castvision_cli import main
from tests.inference.prediction_cases import NAMES, pixels_of

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
WEIGHT = np.random.default_rng(0).normal(size=(3, 3, 3, 3)).astype(np.float32)
WITHOUT = """
import sys
from castvision_cli import main
code = main(sys.argv[1:])
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""


def convolution(path: Path, **change: object) -> Path:
    """A segmenter of one 3 x 3 convolution, in ONNX with facts."""
    seen = InputFormat(3, (32, 32), MEAN, STD)
    facts = Recipe("segmentation", "conv", 3, tuple(NAMES), head="LinearHead", input=seen).to_dict()
    facts |= {"patch_size": [4, 4], "native_size": [32, 32], "fixed_size": None, **change}
    sizes = ["batch", 3, "height", "width"]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, sizes)
    mask = helper.make_tensor_value_info("pixel_mask", TensorProto.BOOL, ["batch", "height", "width"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, sizes)
    axis = numpy_helper.from_array(np.array([1]), "axis")
    nodes = [
        helper.make_node("Cast", ["pixel_mask"], ["plane"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["plane", "axis"], ["planes"]),
        helper.make_node("Mul", ["image", "planes"], ["seen"]),
        helper.make_node("Conv", ["seen", "weight"], ["logits"], pads=[1, 1, 1, 1]),
    ]
    weight = numpy_helper.from_array(WEIGHT, "weight")
    graph = helper.make_graph(nodes, "conv", [image, mask], [logits], [axis, weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.add(key="castvision", value=json.dumps(facts))
    onnx.save(model, str(path))
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (70, 52, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def without_torch(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-c", WITHOUT, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def by_torch(photo: Path) -> torch.Tensor:
    """(3, 70, 52) logits of the same convolution."""
    x = to_model_input(pixels_of(photo), 3, MEAN, STD)
    return nn.functional.conv2d(x[None], torch.from_numpy(WEIGHT), padding=1)[0]


def test_the_command_gives_what_torch_gives_and_never_imports_it(tmp_path: Path, photo: Path) -> None:
    model, out = convolution(tmp_path / "model.onnx"), tmp_path / "out"
    words = ["predict", str(photo), "--model", str(model), "--output", str(out)]
    done = without_torch(*words, "--probabilities", "--geojson")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(pixels_of(out / "masks/photo.png"), by_torch(photo).argmax(0).numpy())
    with (out / "predictions.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == NAMES
    assert (out / "overlays/photo.png").is_file() and (out / "polygons/photo.geojson").is_file()


@pytest.mark.parametrize(("tta", "output"), [("none", "probabilities"), ("d4", "probabilities"), ("flips", "labels")])
def test_tiles_are_joined_as_by_torch(photo: Path, tta: str, output: str) -> None:
    pixels = pixels_of(photo).astype(np.float32)
    kernel = torch.from_numpy(WEIGHT)

    def tensors(batch: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(batch / 99, kernel, padding=1)

    def arrays(batch: np.ndarray) -> np.ndarray:
        return tensors(torch.from_numpy(np.ascontiguousarray(batch))).numpy()

    arrays.takes_arrays = True  # type: ignore[attr-defined]
    how = {"tile": 32, "overlap": 12, "tta": tta, "output": output}
    expected, found = tiled_inference(pixels, tensors, **how), tiled_inference(pixels, arrays, **how)
    for name in ("labels", "values"):
        one, other = getattr(expected, name), getattr(found, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-6)
    assert found.class_pixels == expected.class_pixels and found.seam is not None and expected.seam is not None
    assert found.seam.labels == expected.seam.labels
    assert found.seam.difference == pytest.approx(expected.seam.difference, abs=1e-6)


def test_missing_pixels_are_told_the_model_image_by_image(tmp_path: Path) -> None:
    predictor = OnnxPredictor(convolution(tmp_path / "model.onnx"))
    x = np.random.default_rng(2).normal(size=(2, 3, 40, 24)).astype(np.float32)
    mask = np.ones((2, 40, 24), dtype=bool)
    mask[0, 30:] = mask[0, :, 20:] = mask[1, 5:7, 5:7] = False
    logits = predictor.model(x, mask)
    plain = nn.functional.conv2d(torch.from_numpy(x[:1, :, :30, :20].copy()), torch.from_numpy(WEIGHT), padding=1)
    np.testing.assert_allclose(logits[:1, :, :30, :20], plain.numpy(), atol=1e-5)
    holed = torch.from_numpy(x[1:] * mask[1:, None])
    np.testing.assert_allclose(
        logits[1:], nn.functional.conv2d(holed, torch.from_numpy(WEIGHT), padding=1).numpy(), atol=1e-5
    )


def test_what_is_no_export_of_ours_is_refused(tmp_path: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = convolution(tmp_path / "model.onnx")
    (tmp_path / "cut.onnx").write_bytes(good.read_bytes()[:100])
    stranger = onnx.load(str(good))
    del stranger.metadata_props[:]
    onnx.save(stranger, str(tmp_path / "stranger.onnx"))
    for name, told in (("cut", "is it damaged"), ("stranger", "expected a file of castvision export")):
        with pytest.raises(CheckpointError, match=told):
            OnnxPredictor(tmp_path / f"{name}.onnx")
    with pytest.raises(CheckpointError, match="cannot use the facts"):
        OnnxPredictor(convolution(tmp_path / "bad.onnx", std=[0.0]))
    for option in (["--attention", "full"], ["--precision", "bf16"], ["--device", "cuda"]):
        words = ["predict", str(photo), "--model", str(good), "--output", str(tmp_path / "out"), *option]
        assert main(words) == 2
        assert f"got {' '.join(option) if option[0] != '--attention' else '--attention'}" in capsys.readouterr().err


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    shallow = rng.integers(0, 256, (61, 90, 3), dtype=np.uint8)
    deep = rng.integers(0, 65536, (90, 47, 3), dtype=np.uint16)
    units = rng.normal(1.0, 0.5, (33, 80, 3)).astype(np.float32)
    units[4:9, 5:30] = np.nan
    known = np.ones(shallow.shape, dtype=bool)
    known[10:20, 30:40] = False
    return [shallow, deep, units, mark_missing(shallow, known)]


@pytest.mark.parametrize("number", range(4))
def test_images_reach_the_model_as_by_torch(number: int) -> None:
    pixels = pictures()[number]
    for size in (None, (32, 48), (96, 80)):
        for keep in (False, True):
            expected = to_model_input(pixels, 3, MEAN, STD, size, keep_units=keep).numpy()
            found = to_input_array(pixels, 3, MEAN, STD, size, keep_units=keep)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=0, atol=0 if size is None else 1e-4)
    for side in (32, 96):
        image, _, extras = SampleTransform(side, MEAN, STD).pair(pixels, np.zeros(pixels.shape[:2], np.uint8))
        found, is_real = fit(pixels, side, MEAN, STD)
        np.testing.assert_array_equal(is_real, extras["pixel_mask"].numpy())
        # whole numbers to the bit; fractions to rounding: OpenCV resizes channels together there, and 4.10 not alike
        rounding = 0 if pixels.dtype.kind == "u" else 4 * np.finfo(np.float32).eps * float(image.abs().max())
        np.testing.assert_allclose(found, image.numpy(), rtol=0, atol=rounding)


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_crops_are_timms(size: tuple[int, int]) -> None:
    for pixels in (pictures()[0], pictures()[1], pictures()[3], pictures()[0][..., :1]):
        expected = cropping_transform(size, MEAN, STD)(rgb_picture(pixels, MEAN)).numpy()
        found = crop(pixels, InputFormat(3, size, MEAN, STD, resize="crop"))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_arrays_are_scaled_enlarged_and_weighed_as_tensors_are() -> None:
    rng = np.random.default_rng(4)
    planes = rng.normal(size=(2, 3, 9, 7)).astype(np.float32)
    planes[0, 0, 2] = np.nan
    for limits in (None, (0.0, 2.0), (-1.0, 1.5)):
        expected = planes_to_input(torch.from_numpy(planes), 3, MEAN, STD, limits).numpy()
        found = planes_to_input(planes, 3, MEAN, STD, limits)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)
    values = rng.normal(size=(3, 9, 7)).astype(np.float32)
    for size in ((18, 20), (5, 6), (9, 7)):
        expected = nn.functional.interpolate(torch.from_numpy(values)[None], size, mode="bilinear")[0].numpy()
        np.testing.assert_allclose(resized_linearly(values, size), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(softmax(values, 0), torch.from_numpy(values).softmax(0).numpy(), atol=1e-6)
