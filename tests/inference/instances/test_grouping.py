from __future__ import annotations

import numpy as np
import pytest

from castvision.inference.instances.finding import InstanceOptions, find_instances
from castvision.inference.instances.grouping import Grouping, find_centres, write_groups
from castvision.inference.sinks import FileSink
from tests.inference.instances.map_cases import in_bands_of, stored, whole


def fields_of(heat, offsets=None):
    zeros = np.zeros((2, *heat.shape)) if offsets is None else offsets
    return np.stack([heat, *zeros], axis=-1).astype(np.float32)


def by_definition(heat, how):
    """Maxima of their square, of the whole map."""
    found = []
    margin = how.kernel // 2
    for y, x in np.ndindex(*heat.shape):
        square = heat[max(0, y - margin) : y + margin + 1, max(0, x - margin) : x + margin + 1]
        if heat[y, x] > how.threshold and not (square > heat[y, x]).any():
            found.append((y, x))
    return found


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_centres_are_the_maxima_of_the_whole_map(tmp_path, monkeypatch, rows, kernel):
    heat = np.random.default_rng(0).random((23, 31)).astype(np.float32)
    heat[3:9, 4:9] = np.nan
    how = Grouping(threshold=0.6, kernel=kernel)
    in_bands_of(monkeypatch, rows, 31 * 3)
    places, heats = find_centres(stored(tmp_path / "f", fields_of(heat)), how)
    assert [tuple(place) for place in places.tolist()] == by_definition(np.nan_to_num(heat, nan=-1), how)
    np.testing.assert_array_equal(heats, heat[places[:, 0], places[:, 1]])


@pytest.mark.parametrize("rows", [1, 4, 100])
def test_a_pixel_belongs_to_the_centre_nearest_to_its_vote(tmp_path, monkeypatch, rows):
    """Equation 1 of the paper, for every pixel, by all distances."""
    rng = np.random.default_rng(1)
    heat = rng.random((20, 26)).astype(np.float32) ** 4
    offsets = rng.normal(0, 6, (2, 20, 26)).astype(np.float32)
    labels = rng.integers(0, 3, (20, 26)).astype(np.uint8)
    how = Grouping(threshold=0.5, kernel=5, reach=4.0)
    in_bands_of(monkeypatch, rows, 26)
    ids = FileSink(tmp_path / "ids")
    stores = [stored(tmp_path / name, each) for name, each in (("l", labels), ("f", fields_of(heat, offsets)))]
    places, _ = write_groups(*stores, ids, np.array([1, 2]), how)
    y, x = np.mgrid[:20, :26]
    distances = np.hypot(
        y[..., None] + offsets[0][..., None] - places[:, 0], x[..., None] + offsets[1][..., None] - places[:, 1]
    )
    expected = np.where((labels > 0) & (distances.min(axis=-1) < 4), distances.argmin(axis=-1) + 1, 0)
    assert 0 < (expected > 0).mean() < 0.6
    np.testing.assert_array_equal(whole(ids), expected)


def test_the_class_of_an_object_is_that_of_most_of_its_pixels_and_its_score_counts_both(tmp_path):
    labels = np.array([[1, 1, 2, 0, 2, 2]], np.uint8)
    heat = np.array([[0, 0.5, 0, 0, 0.25, 0]], np.float32)
    offsets = np.zeros((2, 1, 6))
    offsets[1] = [[1, 0, -1, 0, 0, -1]]
    probabilities = np.full((1, 6, 3), 0.2, np.float32)
    probabilities[..., 1] = 0.6
    options = InstanceOptions("centres", grouping=Grouping(kernel=3))
    given = {
        "probabilities": stored(tmp_path / "p", probabilities),
        "fields": stored(tmp_path / "f", fields_of(heat, offsets)),
    }
    found = find_instances(stored(tmp_path / "l", labels), options, [1, 2], **given)
    assert whole(found.ids).tolist() == [[1, 1, 1, 0, 2, 2]]
    assert found.classes.tolist() == [-1, 1, 2]
    assert found.scores[1:].tolist() == pytest.approx([0.5 * 0.6, 0.25 * 0.2])
    assert found.lost == 0


def test_without_a_centre_there_is_no_object(tmp_path):
    labels = np.ones((4, 5), np.uint8)
    given = {"fields": stored(tmp_path / "f", fields_of(np.zeros((4, 5))))}
    found = find_instances(stored(tmp_path / "l", labels), InstanceOptions("centres"), [1], **given)
    assert len(found) == 0
    assert found.lost == 20
    with pytest.raises(ValueError, match="got none; use components or watershed"):
        find_instances(stored(tmp_path / "l", labels), InstanceOptions("centres"), [1])


@pytest.mark.parametrize("wrong", [{"kernel": 4}, {"kernel": 0}, {"reach": 0.0}])
def test_impossible_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="expected an odd kernel >= 1 and reach > 0"):
        Grouping(**wrong)
