from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from castvision.data.reading.pixels import holds_data, match_channels, stretch_range, to_model_input, to_unit_range

skimage = pytest.importorskip("skimage")
PHOTOS = Path(skimage.__file__).parent / "data"
RNG = np.random.default_rng(0)
RGB8 = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
GREY16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def test_unit_range_by_dtype():
    np.testing.assert_allclose(to_unit_range(np.array([0, 51, 255], np.uint8)), [0, 0.2, 1], rtol=1e-6)
    np.testing.assert_allclose(to_unit_range(np.array([0, 13107, 65535], np.uint16)), [0, 0.2, 1], rtol=1e-6)
    np.testing.assert_array_equal(to_unit_range(np.array([True, False])), [1, 0])
    np.testing.assert_allclose(to_unit_range(np.array([0.25, 0.5], np.float32)), [0.25, 0.5])
    np.testing.assert_allclose(to_unit_range(np.array([-1.0, 0.0, 3.0, np.nan, np.inf])), [0, 0.25, 1, 0, 0])
    np.testing.assert_allclose(to_unit_range(np.array([5, 10, 15], np.int32)), [0, 0.5, 1])
    with pytest.raises(TypeError, match="real numbers"):
        to_unit_range(np.array(["a"]))


def test_what_holds_data():
    values = np.array([0, -9999, np.nan, np.inf], np.float32)
    assert holds_data(values, None).tolist() == [True, True, False, False]
    assert holds_data(values, -9999).tolist() == [True, False, False, False]
    assert holds_data(values, float("nan")).tolist() == [True, True, False, False]
    assert holds_data(np.array([0, 255], np.uint8), 255).tolist() == [True, False]


def test_stretch_range():
    values = np.arange(1000, 2001, dtype=np.uint16)
    result = stretch_range(values, (10, 90))
    np.testing.assert_allclose(result[[0, 100, 500, 900, 1000]], [0, 0, 0.5, 1, 1], atol=1e-6)
    assert stretch_range(np.full(4, 7, np.uint16)).tolist() == [0, 0, 0, 0]
    with pytest.raises(ValueError, match="percentiles"):
        stretch_range(values, (90, 10))


def test_channels():
    grey = np.full((2, 2, 1), 0.5, np.float32)
    assert match_channels(grey, 3).shape == (2, 2, 3)
    red = np.zeros((1, 1, 3), np.float32)
    red[..., 0] = 1
    np.testing.assert_allclose(match_channels(red, 1), [[[0.299]]], rtol=1e-6)
    with pytest.raises(ValueError, match="5 channels.*got 2"):  # noqa: RUF043
        match_channels(np.zeros((1, 1, 2), np.float32), 5)


def test_model_input_values_and_size():
    image = np.full((4, 6, 3), (0, 51, 255), np.uint8)
    result = to_model_input(image, 3, (0.5, 0.2, 0.5), (0.5, 0.1, 0.25))
    assert result.shape == (3, 4, 6)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result[:, 0, 0], torch.tensor([-1.0, 0.0, 2.0]))
    resized = to_model_input(image, 3, (0.5,), (0.5,), (9, 5))
    assert resized.shape == (3, 9, 5)
    torch.testing.assert_close(resized[2], torch.ones(9, 5))
    assert to_model_input(image[..., 0], 3, (0.5,), (0.5,)).shape == (3, 4, 6)


def test_16_bit_differs_from_its_8_bit_cut():
    image = np.array([[[300], [301]]], np.uint16)
    result = to_model_input(image, 1, (0.0,), (1.0,)).flatten()
    assert result[0] < result[1]


def test_resizing_is_antialiased():
    stripes = np.zeros((64, 64, 1), np.uint8)
    stripes[:, ::2] = 255
    result = to_model_input(stripes, 1, (0.0,), (1.0,), (8, 8))
    assert (result[:, 1:-1, 1:-1] - 0.5).abs().max() < 0.06


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((0, 4, 3), np.uint8)}, "non-empty"),
        ({"image": np.zeros((2, 2, 2, 3), np.uint8)}, "image.shape"),
        ({"image": np.zeros((2, 2, 4), np.uint8)}, "3 channels.*got 4"),
        ({"mean": (0.5, 0.5)}, "mean of length 1 or 3"),
        ({"std": (0.0,)}, "std > 0"),
        ({"size": (0, 4)}, "size="),
    ],
)
def test_model_input_errors(change, message):
    arguments = {"image": RGB8, "in_chans": 3, "mean": (0.5,), "std": (0.5,), "size": None, **change}
    with pytest.raises(ValueError, match=message):
        to_model_input(**arguments)
    with pytest.raises(TypeError, match="numpy array"):
        to_model_input(torch.zeros(3, 4, 4), 3, (0.5,), (0.5,))
