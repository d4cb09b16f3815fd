from __future__ import annotations

import numpy as np
import pytest

from castvision.data import split_by_block, split_by_source

SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


@pytest.mark.parametrize(
    ("size", "block", "margin"), [((1000, 700), 128, 0), ((1000, 700), 100, 16), ((64, 4000), 100, 31)]
)
def test_no_pixel_is_in_two_splits_and_a_margin_lies_between_them(size, block, margin):
    owner = np.zeros(size, np.int8)
    blocks = split_by_block(*size, block, SHARES, seed=3, margin=margin)
    for number, split in enumerate(SHARES, start=1):
        assert blocks[split]
        for area in blocks[split]:
            inside = owner[area.y : area.y + area.height, area.x : area.x + area.width]
            assert inside.shape == area[2:] and (inside == 0).all()
            inside[...] = number
    assert (owner > 0).mean() > (0.99 if margin == 0 else 0.6)
    for areas in blocks.values():
        for area in areas:
            near = owner[max(area.y - margin, 0) : area.y + area.height + margin,
                         max(area.x - margin, 0) : area.x + area.width + margin]  # fmt: skip
            assert set(np.unique(near)) <= {0, owner[area.y, area.x]} or margin == 0


def test_shares_of_blocks_and_seeds():
    first, second = (split_by_block(1000, 1000, 100, SHARES, seed=seed) for seed in (0, 1))
    assert [len(areas) for areas in first.values()] == [70, 20, 10]
    assert first == split_by_block(1000, 1000, 100, SHARES, seed=0) and first != second


def test_whole_slides():
    parts = split_by_source(10, SHARES, seed=1)
    assert [len(part) for part in parts.values()] == [7, 2, 1]
    assert sorted(number for part in parts.values() for number in part) == list(range(10))
    assert [len(part) for part in split_by_source(["a", "b", "c"], SHARES).values()] == [1, 1, 1]
    assert [len(part) for part in split_by_source(4, {"train": 0.99, "val": 0.01}).values()] == [3, 1]


def test_slides_of_a_patient_stay_together():
    patients = [number // 3 for number in range(30)]
    parts = split_by_source(30, SHARES, groups=patients)
    owners = [{patients[number] for number in part} for part in parts.values()]
    assert set.union(*owners) == set(range(10)) and sum(len(owner) for owner in owners) == 10


def test_what_cannot_be_split():
    with pytest.raises(ValueError, match=r"for each of train, val, test, got 2; leave a split out"):
        split_by_source(2, SHARES)
    with pytest.raises(ValueError, match="blocks of 100 pixels"):
        split_by_block(100, 200, 100, SHARES)
    with pytest.raises(ValueError, match="margin < block"):
        split_by_block(100, 200, 10, SHARES, margin=10)
    with pytest.raises(ValueError, match="shares > 0"):
        split_by_source(5, {"train": 1.0, "val": 0.0})
    with pytest.raises(ValueError, match="one group for each of 3 images"):
        split_by_source(3, SHARES, groups=["a"])
