from __future__ import annotations

import numpy as np
import pytest
from skimage import measure

from castvision.inference.instances import components
from castvision.inference.instances.components import Forest, renumber, write_components
from castvision.inference.sinks import FileSink
from tests.inference.instances.map_cases import blobs, in_bands_of, stored, whole


def labelled(tmp_path, labels, things, min_area=1):
    ids = FileSink(tmp_path / "ids")
    stands_for, classes = write_components(stored(tmp_path / "labels", labels), ids, things)
    numbers = renumber(ids, stands_for, min_area)
    return whole(ids), classes[numbers]


def expected_of(labels, things):
    """scikit-image's components of the whole map, in the order of their first pixels; they share edges."""
    chosen = np.where(np.isin(labels, things), labels.astype(int) + 1, 0)
    return measure.label(chosen, connectivity=1)


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("seed", [0, 1])
def test_bands_are_joined_to_what_the_whole_map_gives(tmp_path, monkeypatch, rows, seed):
    labels = blobs(seed=seed)
    in_bands_of(monkeypatch, rows, labels.shape[1])
    ids, classes = labelled(tmp_path, labels, [1, 2])
    np.testing.assert_array_equal(ids, expected_of(labels, [1, 2]))
    assert (ids[~np.isin(labels, [1, 2])] == 0).all()
    for number in (1, 5, len(classes) - 1):
        assert (labels[ids == number] == classes[number]).all()


def test_arms_that_meet_late_are_one_object(tmp_path, monkeypatch):
    """A comb whose teeth are joined in its last row, and a spiral: both cross every band many times."""
    labels = np.zeros((40, 61), np.uint8)
    labels[:39, 1:40:2] = 1
    labels[39, 1:40] = 1
    for inset in range(0, 8, 4):
        labels[inset : 40 - inset, 42 + inset // 2] = 1
    in_bands_of(monkeypatch, 3, 61)
    ids, _ = labelled(tmp_path, labels, [1])
    assert len(np.unique(ids[:, :41])) == 2
    np.testing.assert_array_equal(ids, expected_of(labels, [1]))


def test_neighbours_of_another_class_and_corners_stay_apart(tmp_path):
    labels = np.array([[1, 2, 0], [0, 1, 0], [0, 0, 1]], np.uint8)
    ids, classes = labelled(tmp_path, labels, [1, 2])
    np.testing.assert_array_equal(ids, [[1, 2, 0], [0, 3, 0], [0, 0, 4]])
    assert classes.tolist() == [-1, 1, 2, 1, 1]


def test_small_objects_leave_no_gap_in_the_numbers(tmp_path, monkeypatch):
    labels = blobs()
    in_bands_of(monkeypatch, 11, labels.shape[1])
    everything, _ = labelled(tmp_path, labels, [1])
    ids, classes = labelled(tmp_path, labels, [1], min_area=30)
    counts = np.bincount(everything.ravel())
    kept = np.flatnonzero(counts[1:] >= 30) + 1
    assert 0 < len(kept) < len(counts) - 1
    assert len(classes) == len(kept) + 1
    np.testing.assert_array_equal(np.bincount(ids.ravel())[1:], counts[kept])
    assert (ids[np.isin(everything, kept)] > 0).all()


def test_no_object_at_all(tmp_path):
    for labels in (np.zeros((5, 4), np.uint8), np.full((5, 4), 255, np.uint8)):
        ids, classes = labelled(tmp_path, labels, [1])
        assert not ids.any()
        assert classes.tolist() == [-1]


def test_too_many_components_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(components, "MOST", 10)
    labels = np.indices((8, 8)).sum(axis=0).astype(np.uint8) % 2
    with pytest.raises(ValueError, match=r"more than 10 components .* leave out --instances"):
        labelled(tmp_path, labels, [1])


def test_a_forest_of_long_chains():
    forest = Forest()
    for number in range(999, 0, -1):
        forest.join(number, number + 1)
    forest.join(2000, 2001)
    roots = forest.roots(2002)
    assert (roots[1:1001] == 1).all()
    assert roots[[0, 1500, 2000, 2001]].tolist() == [0, 1500, 2000, 2000]
