from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from castvision.data.reading.pixels import (
    from_planes,
    holds_data,
    in_channels,
    is_missing,
    mark_missing,
    match_channels,
    nodata_number,
    stretch_range,
    to_unit_range,
)
from castvision.data.transforms.model_input import planes_to_input, to_model_input

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


def test_planes_become_the_image_that_they_were_made_of():
    planes = np.array([[[1, np.nan]], [[3, 4]]], np.float32)
    pixels = from_planes(planes, np.dtype(np.uint8))
    assert pixels.dtype == np.uint8
    assert pixels.tolist() == [[[1, 3], [None, 4]]]
    assert not np.ma.isMaskedArray(from_planes(np.nan_to_num(planes), np.dtype(np.uint8)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int32])
def test_planes_of_the_largest_value(dtype):
    limits = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max], dtype)
    assert from_planes(limits[None, None].astype(np.float32), np.dtype(dtype)).ravel().tolist() == limits.tolist()


@pytest.mark.parametrize(
    ("text", "number"), [("-9999 -9999 -9999", -9999), (" 7\0", 7), ("1e3 ", 1000), ("none", None)]
)
def test_nodata_as_text(text, number):
    assert nodata_number(text) == number


def test_nodata_that_is_rounded_in_a_files_text():
    """As GDAL compares floats: four units in the last place, relative."""
    lowest = np.finfo(np.float32).min
    values = np.array([lowest, -3.402e38, -9999, -9999.1, 0, np.nan], np.float32)
    assert is_missing(values, -3.402823e38).tolist() == [True, *[False] * 5]
    assert is_missing(values, float(lowest)).tolist() == [True, *[False] * 5]
    assert is_missing(values, -9999).tolist() == [False, False, True, False, False, False]
    assert is_missing(values, 0).tolist() == [False, False, False, False, True, False]
    assert is_missing(values.astype(np.float64), -9999).tolist() == [False, False, True, False, False, False]


def test_grey_of_a_pixel_that_misses_some_colours():
    """Red alone has nodata 0 in two channels and is no hole: grey is that of red, at every door."""
    stored = np.array([[[200, 0, 0], [0, 0, 0], [10, 20, 30]]], np.uint8)
    marked = mark_missing(stored, stored != 0)
    grey = in_channels(marked, 1)
    assert grey.dtype == np.uint8
    assert grey.tolist() == [[[200], [None], [18]]]
    assert in_channels(grey, 3)[0, 0].tolist() == [200, 200, 200]
    tensor = to_model_input(marked, 1, (0.5,), (0.25,))
    assert tensor.flatten().tolist() == pytest.approx([(200 / 255 - 0.5) * 4, 0, (18 / 255 - 0.5) * 4], abs=1e-6)
    planes = np.where(stored != 0, stored, np.nan).transpose(2, 0, 1).astype(np.float32)
    assert np.array_equal(planes_to_input(torch.from_numpy(planes), 1, (0.5,), (0.25,), (0, 255), True), tensor)
    assert np.array_equal(planes_to_input(planes, 1, (0.5,), (0.25,), (0, 255), True), tensor)
