"""What images must be like for a model to be shown them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import tifffile

from castvision.data.input_format import InputFormat
from castvision.inference.tile_model import open_for

OF_BYTES, OF_KELVIN = ((0.5,), (0.25,)), ((280.0,), (10.0,))


def _opened(tmp_path, pixels, statistics, **change):
    tifffile.imwrite(tmp_path / "image.tif", pixels)
    seen = InputFormat(1, (32, 32), *statistics, **{"keeps_units": True, **change})
    with open_for(SimpleNamespace(parts=SimpleNamespace(input=seen)), tmp_path / "image.tif") as reader:
        return reader.height, reader.width


@pytest.mark.parametrize(
    ("statistics", "pixels", "told"),
    [
        (OF_BYTES, np.float32([[0, 128], [200, 255]]), "float32, which stay as they are, with a median of 164"),
        (OF_BYTES, np.int16([[-9000, -9000], [-9000, 12]]), "int16, which stay as they are, with a median of -9000"),
        (OF_KELVIN, np.uint16([[0, 65535], [65535, 65535]]), "uint16, which become 0..1, with a median of 1 "),
    ],
)
def test_values_of_another_unit_than_in_training_are_refused(tmp_path, statistics, pixels, told):
    """They were normalised by figures that are not theirs, and every class was guesswork."""
    with pytest.raises(ValueError, match=f"expected values as in training .* got {told}.*write it in the type"):
        _opened(tmp_path, pixels, statistics)


@pytest.mark.parametrize(
    ("statistics", "pixels", "change"),
    [
        (OF_BYTES, np.float32([[0, 1], [0.5, 0.7]]), {}),
        (OF_BYTES, np.float32([[np.nan, np.nan], [np.nan, np.nan]]), {}),
        (((0.01,), (0.001,)), np.float32([[1, 1], [1, 1]]), {}),  # a bright image
        (((0.01,), (0.001,)), np.uint8([[255, 255], [255, 255]]), {}),
        (OF_KELVIN, np.int16([[0, 10], [20, 30]]), {}),  # its own units, whatever they are
        (OF_BYTES, np.float32([[0, 128], [200, 255]]), {"keeps_units": False}),  # each image by its own range
    ],
)
def test_other_values_are_taken(tmp_path, statistics, pixels, change):
    assert _opened(tmp_path, pixels, statistics, **change) == pixels.shape
