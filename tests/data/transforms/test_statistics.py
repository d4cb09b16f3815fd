from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch

from castvision.data import ChannelStatistics, open_array
from castvision.data.reading.pixels import is_missing
from castvision.data.transforms.statistics import RunningStatistics

RNG = np.random.default_rng(0)


def test_streamed_statistics_are_those_of_all_values(tmp_path):
    first, second = RNG.integers(0, 65536, (70, 90, 4), np.uint16), RNG.integers(500, 900, (33, 20, 4), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", first, photometric="minisblack", planarconfig="contig", tile=(16, 16))
    found = ChannelStatistics.of([tmp_path / "a.tif", open_array(second)], window=17)
    values = np.concatenate([first.reshape(-1, 4), second.reshape(-1, 4)]) / 65535
    np.testing.assert_allclose(found.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, values.std(axis=0), rtol=1e-12)


def test_large_values_lose_nothing():
    values = 1e6 + RNG.normal(size=(100, 100, 1))  # the naive sum of squares would lose half its digits
    running = RunningStatistics()
    for row in values:
        running.add(row[None])
    np.testing.assert_allclose(running.result().std, values.std(), rtol=1e-9)


def test_nodata_and_nan_do_not_count():
    values = np.array([[[1.0, 5.0], [3.0, np.nan], [-9.0, 7.0]]], np.float32)
    running = RunningStatistics()
    running.add(values, nodata=-9)
    assert running.result() == ChannelStatistics((2.0, 6.0), (1.0, 1.0))
    empty = RunningStatistics()
    empty.add(np.full((2, 2, 1), -9, np.int16), nodata=-9)
    with pytest.raises(ValueError, match="all pixels nodata"):
        empty.result()
    with pytest.raises(ValueError, match="2 channels as in the images before, got 3"):
        running.add(np.zeros((1, 1, 3)))


def test_a_constant_channel_is_not_blown_up():
    running = RunningStatistics()
    running.add(np.full((9, 9, 1), 0.1))
    assert running.result().std == (1.0,)


def test_eight_and_sixteen_bits_agree():
    pixels = RNG.integers(0, 256, (5, 6, 3), np.uint8)
    statistics = ChannelStatistics((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    result = statistics.normalise(pixels)
    expected = (pixels / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    assert result.dtype == torch.float32 and result.shape == (3, 5, 6)
    np.testing.assert_allclose(result, expected.transpose(2, 0, 1), atol=1e-5)
    np.testing.assert_allclose(statistics.normalise(pixels.astype(np.uint16) * 257), result, atol=1e-5)
    np.testing.assert_allclose(statistics.normalise((pixels / 255).astype(np.float32)), result, atol=1e-5)
    with pytest.raises(ValueError, match="3 channels as in the statistics"):
        statistics.normalise(pixels[..., :2])


def test_missing_values_become_the_mean():
    statistics = ChannelStatistics((2.0,), (4.0,))
    values = np.array([[[6.0], [np.nan]]], np.float32)
    assert statistics.normalise(values, nodata=float("nan")).tolist() == [[[1.0, 0.0]]]
    lowest = float(np.finfo(np.float32).min)
    assert is_missing(np.array([lowest], np.float32), -3.4028234663852886e38).all()
    assert not is_missing(np.array([1], np.uint8), float("nan")).any()
    assert not is_missing(np.array([247], np.uint8), -9).any()


def test_the_file(tmp_path):
    statistics = ChannelStatistics((0.1, 1 / 3), (0.2, 7.5))
    statistics.save(tmp_path / "s.json")
    assert ChannelStatistics.load(tmp_path / "s.json") == statistics
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
    (tmp_path / "s.json").write_text('{"mean": [1]}')
    with pytest.raises(ValueError, match=r"mean and std as JSON lists in .*s\.json"):
        ChannelStatistics.load(tmp_path / "s.json")
    with pytest.raises(FileNotFoundError):
        ChannelStatistics.load(tmp_path / "gone.json")


@pytest.mark.parametrize(("mean", "std"), [((), ()), ((1.0,), (1.0, 2.0)), ((1.0,), (0.0,)), ((np.inf,), (1.0,))])
def test_impossible_statistics(mean, std):
    with pytest.raises(ValueError, match="expected"):
        ChannelStatistics(mean, std)


@pytest.mark.parametrize("first", [np.uint8, np.uint16, np.bool_])
@pytest.mark.parametrize(("other", "values"), [
    (np.float32, [0, 25_500]), (np.int16, [-100, 7]), (np.float64, [np.nan, 255]),
])  # fmt: skip
@pytest.mark.parametrize("is_turned", [False, True])
def test_images_of_two_units_are_refused(first, other, values, is_turned):
    """Whole numbers become 0..1 and others stay, so that the mean of both is nobody's."""
    images = [np.ones((1, 2, 1), first), np.array(values, other).reshape(1, 2, 1)]
    running = RunningStatistics()
    with pytest.raises(ValueError, match=r"values of one unit, got some of .* write all of them in one type"):
        for image in reversed(images) if is_turned else images:
            running.add(image)


@pytest.mark.parametrize("others", [np.float32([0.2, 1.1]), np.float64([np.inf, 0.5]), np.uint16([0, 65535])])
def test_shares_are_one_unit_whatever_their_type(others):
    running = RunningStatistics()
    for image in (np.uint8([0, 255]), others):
        running.add(image.reshape(1, 2, 1))
    assert 0 <= running.result().mean[0] <= 1.1
