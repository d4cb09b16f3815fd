from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.data.transforms.model_input import planes_to_input, to_float, to_model_input, value_limits

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


def test_limits_of_an_image_in_parts():
    whole = np.array([[-2.0, np.nan], [5.0, np.inf]], np.float32)
    assert value_limits(whole.dtype, [whole], keep_units=False) == (-2, 5)
    assert value_limits(whole.dtype, [whole[:1], whole[1:]], keep_units=False) == (-2, 5)
    assert value_limits(whole.dtype, [whole], keep_units=True) is None
    assert value_limits(whole.dtype, [whole[:0]], keep_units=False) == (0, 1)
    assert value_limits(whole.dtype, [np.full(3, 0.3, np.float32)], keep_units=False) == (0, 1)
    assert value_limits(np.dtype(np.int16), [np.full(3, 7, np.int16)], keep_units=False) == (7, 8)
    for keep_units in (True, False):  # the dtype decides, nothing is read
        assert value_limits(np.dtype(np.uint16), iter(()), keep_units=keep_units) == (0, 65535)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tiles_become_what_their_image_becomes(dtype, device):
    image = (RNG.normal(size=(6, 8, 3)) * 100 + 500).astype(dtype)
    limits = value_limits(image.dtype, [image], keep_units=False)
    tiles = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).unfold(2, 4, 4).permute(2, 0, 1, 3)
    found = planes_to_input(tiles.to(device), 1, (0.3,), (0.7,), limits, image.dtype.kind in "ui").cpu()
    whole = to_model_input(image, 1, (0.3,), (0.7,))
    assert torch.equal(torch.cat(list(found), dim=2), whole)
