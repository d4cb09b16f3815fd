from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.data.transforms.model_input import to_float, to_model_input

RNG = np.random.default_rng(0)
RGB8 = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_integers_become_0_to_1_and_floats_keep_their_units():
    assert to_float(np.array([0, 255], np.uint8)).tolist() == [0, 1]
    assert to_float(np.array([65535], np.uint16)).tolist() == [1]
    assert to_float(np.array([-1000.5, 3000], np.float64)).tolist() == [-1000.5, 3000]
    assert to_float(np.array([-5], np.int16)).tolist() == [-5]
    assert to_float(np.array([-5], np.int16)).dtype == np.float32


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
