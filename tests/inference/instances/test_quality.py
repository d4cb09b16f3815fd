from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchmetrics.detection import PanopticQuality

from castvision.inference.instances.quality import PanopticTally

NOTHING = np.zeros((1, 12), bool)


def moved(ids, seed):
    """Objects with other borders, some lost, some split, some joined."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: ids.shape[0], : ids.shape[1]]
    rows, columns = (np.clip(place + rng.integers(-2, 3, ids.shape), 0, size - 1)
                     for place, size in ((y, ids.shape[0]), (x, ids.shape[1])))  # fmt: skip
    numbers = np.arange(ids.max() + 1)
    numbers[rng.choice(numbers[1:], 6, replace=False)] = 0
    numbers[rng.choice(numbers[1:], 6, replace=False)] = 3
    return numbers[ids[rows, columns]] + np.where((ids[rows, columns] % 7 == 1) & (x % 20 > 12), 100, 0)


@pytest.mark.parametrize("seed", range(4))
def test_figures_are_those_of_torchmetrics(seed):
    """Three classes with objects and a background; pixels without truth, and without prediction."""
    rng = np.random.default_rng(seed)
    oracle = PanopticQuality({1, 2, 3}, {0}, allow_unknown_preds_category=True, return_per_class=True,
                             return_sq_and_rq=True)  # fmt: skip
    tally, parts = PanopticTally(4), PanopticTally(4)
    for _ in range(2):
        true = np.kron(rng.integers(0, 40, (12, 14)), np.ones((7, 6), int))
        found = moved(true, seed)
        true_classes = np.append(-1, rng.integers(1, 4, true.max()))
        found_classes = np.append(-1, np.where(rng.random(found.max()) < 0.8, np.resize(true_classes[1:], found.max()),
                                               rng.integers(1, 4, found.max())))  # fmt: skip
        is_ignored, is_unknown = (rng.random(true.shape) < 0.02 for _ in range(2))
        is_ignored[20:44, 30:60] = is_unknown[50:70, :30] = True
        tally.update(found, found_classes, true, true_classes, is_unknown, is_ignored)
        one = PanopticTally(4)
        one.update(found, found_classes, true, true_classes, is_unknown, is_ignored)
        parts.merge(one)
        pairs = []
        for ids, classes, void in ((found, found_classes, is_unknown), (true, true_classes, is_ignored)):
            of_pixel = np.where(void, 9, np.where(ids > 0, classes[ids], 0))
            pairs.append(torch.from_numpy(np.stack([of_pixel, np.where(void, 0, ids)], axis=-1))[None])
        oracle.update(*pairs)
    values = oracle.compute()[:3].numpy()  # things come first
    np.testing.assert_allclose(tally.of_classes()[1:], values)
    np.testing.assert_allclose(parts.of_classes(), tally.of_classes())
    assert tally.matched[1:].min() > 0
    assert tally.wrong.sum() > 3
    assert tally.missed.sum() > 3
    means = tally.means([1, 2, 3])
    assert [means[name] for name in ("pq", "sq", "rq")] == pytest.approx(values.mean(axis=0).tolist())


def test_a_case_by_hand():
    """One match of 3 of 4 pixels, one object of another class, one missed."""
    true = np.array([[1, 1, 1, 1, 0, 2, 2, 2, 0, 3, 3, 0]])
    found = np.array([[1, 1, 1, 0, 0, 2, 2, 2, 0, 0, 0, 0]])
    tally = PanopticTally(3)
    tally.update(found, np.array([-1, 1, 2]), true, np.array([-1, 1, 1, 1]), NOTHING, NOTHING)
    values = tally.of_classes()
    assert values[1].tolist() == pytest.approx([0.75 / 2, 0.75, 0.5])
    assert values[2].tolist() == [0, 0, 0]
    assert np.isnan(values[0]).all()
    assert tally.means([1, 2])["pq"] == pytest.approx(0.1875)
    rows = [{"name": name} for name in "abc"]
    tally.describe(rows, [1, 2])
    assert rows[1] == {"name": "b", "pq": 0.375, "sq": 0.75, "rq": 0.5, "matched": 1, "wrong": 0, "missed": 2}
    assert rows[0] == {"name": "a", **dict.fromkeys(("pq", "sq", "rq", "matched", "wrong", "missed"))}


def test_half_an_overlap_is_no_match_and_nothing_has_no_figure():
    true, found = np.array([[1, 1, 1, 0]]), np.array([[1, 1, 0, 1]])
    tally = PanopticTally(2)
    nothing = np.zeros((1, 4), bool)
    tally.update(found, np.array([-1, 1]), true, np.array([-1, 1]), nothing, nothing)
    assert (tally.matched[1], tally.wrong[1], tally.missed[1]) == (0, 1, 1)
    empty = PanopticTally(2)
    empty.update(0 * found, np.array([-1]), 0 * true, np.array([-1]), nothing, nothing)
    assert math.isnan(empty.means([1])["pq"])
    assert empty.facts([1]) == {"pq": None, "sq": None, "rq": None}
