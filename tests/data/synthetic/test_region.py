"""The marked region is what scikit-image calls a component."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from skimage.measure import label

from castvision.data.synthetic import RegionDataset, region
from castvision.data.synthetic.region import DOT, LEAST, MOST, find_thresholds


@pytest.mark.parametrize(("size", "radius", "share"), [(64, 3, 0.5), (64, 2, 0.55), (48, 1, 0.45), (100, 5, 0.5)])
def test_the_target_is_the_component_under_the_dot(size: int, radius: int, share: float) -> None:
    batch = RegionDataset(size, radius, share, seed=1).make_batch(np.arange(30))
    for image, target, (y, x) in zip(batch.images, batch.targets, batch.dots, strict=True):
        components = label(image > 0, connectivity=1)
        assert image[y, x] == DOT and components[y, x] > 0
        assert np.array_equal(target == 1, components == components[y, x])
        assert target[image == DOT].all()
        assert LEAST <= target.mean() <= MOST
        assert len(np.unique(components)) > 2, "some land must lie apart"


def test_smoothing_equals_three_box_filters() -> None:
    """The levels stand for the mean and deviation of the smoothed noise."""
    data = RegionDataset(256, 4)
    land = (data.make_batch(np.arange(20)).images > 0).mean()
    assert abs(land - 0.5) < 0.02
    box = np.ones(9)
    weights = np.convolve(np.convolve(box, box), box)
    noise = np.random.default_rng(0).integers(0, 2, (400, 400)).astype(float)
    smooth = np.apply_along_axis(np.convolve, 0, noise, weights, "valid")
    smooth = np.apply_along_axis(np.convolve, 1, smooth, weights, "valid")
    land_level, dot_level = find_thresholds(4, 0.5)
    assert land_level == 9**6 / 2 or abs(land_level - 9**6 / 2) <= 0.5
    assert abs((dot_level - land_level) / (smooth.std() / 2) - 1) < 0.1


@numba.njit
def smooth(field: region.Field, radius: int) -> None:
    region.smooth_rows(field, radius)
    if radius > 0:
        region.smooth_columns(field, radius)


def test_smoothed_noise_pixel_by_pixel() -> None:
    """Each smoothed pixel is the weighted sum of the bits around it."""
    field = region.Field(
        np.array([3, 12345], np.uint64),
        np.zeros((44, 44), np.int32),
        np.zeros(32, np.int32),
        np.zeros((32, 32), np.uint8),
        np.zeros(1, np.int32),
        np.zeros(2, np.int64),
        np.zeros(2, np.int64),
    )
    smooth(field, 0)
    bits = field.noise.copy()
    assert set(np.unique(bits)) == {0, 1}
    field.rng[:] = [3, 12345]
    smooth(field, 2)
    weights = np.convolve(np.convolve(np.ones(5, int), np.ones(5, int)), np.ones(5, int))
    expected = np.apply_along_axis(np.convolve, 0, bits, weights, "valid")
    expected = np.apply_along_axis(np.convolve, 1, expected, weights, "valid")
    assert np.array_equal(field.noise[:32, :32], expected)


def test_distances_reach_the_region_and_nothing_else() -> None:
    data = RegionDataset(64, 3, split="test")
    for index in range(5):
        batch = data.make_batch(np.array([index]))
        distance = data.distance(index)
        assert np.array_equal(np.isfinite(distance), batch.targets[0] == 1)
        y, x = batch.dots[0]
        rows, columns = np.indices((64, 64))
        straight = np.abs(rows - y) + np.abs(columns - x)
        reached = batch.targets[0] == 1
        assert (distance[reached] >= straight[reached]).all()
        assert distance[y, x] == 0 and distance[reached].max() < reached.sum()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"img_size": 16}, "img_size"),
        ({"radius": 0}, "radius"),
        ({"radius": 18}, "radius"),
        ({"share": 0.9}, "share"),
        ({"split": "dev"}, "split"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegionDataset(**arguments)


def test_a_landscape_without_a_fitting_region_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region, "LEAST", 1.5)
    with pytest.raises(ValueError, match="found no region"):
        RegionDataset(32, 1).make_batch(np.arange(1))


@pytest.mark.parametrize(
    "size", [256, pytest.param(1024, marks=pytest.mark.slow), pytest.param(2048, marks=pytest.mark.slow)]
)
def test_large_landscapes(size: int) -> None:
    batch = RegionDataset(size).make_batch(np.array([1]))
    components = label(batch.images[0] > 0, connectivity=1)
    assert np.array_equal(batch.targets[0] == 1, components == components[tuple(batch.dots[0])])
