"""The marked regions are each other's copies, and nothing else of the image is."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.measure import label

from castvision.data.synthetic import CopyMoveDataset, DenseDataset


@pytest.mark.parametrize(("size", "decoys"), [(64, 1), (64, 0), (48, 3), (32, 3), (100, 2)])
def test_both_regions_are_marked_and_hold_the_same_pixels(size: int, decoys: int) -> None:
    data = CopyMoveDataset(size, decoys, seed=1)
    batch = data.make_batch(np.arange(20))
    for index, (image, target, (y, x)) in enumerate(zip(batch.images, batch.targets, batch.dots, strict=True)):
        down, right = data.shift(index)
        both = label(target, connectivity=1)
        assert both.max() == 2, "source and copy are apart"
        source, copy = both == both[y, x], both == both[y + down, x + right]
        assert np.array_equal(source ^ copy, target == 1)
        assert np.array_equal(np.roll(source, (down, right), (0, 1)), copy)
        assert np.array_equal(image[source], image[copy]) and len(np.unique(image[source])) > 5


def test_a_region_is_an_ellipse_of_the_promised_size() -> None:
    data = CopyMoveDataset(96)
    target = data.make_batch(np.arange(40)).targets
    share = target.mean((1, 2))
    assert 2 * np.pi * 7**2 / 96**2 < share.min() and share.max() < 2 * np.pi * 17**2 / 96**2
    y, x = data.make_batch(np.array([3])).dots[0]
    source = label(target[3], connectivity=1) == label(target[3], connectivity=1)[y, x]
    rows, columns = np.nonzero(source)
    tall, wide = (rows.max() - rows.min()) // 2, (columns.max() - columns.min()) // 2
    grid = np.indices((96, 96))
    ellipse = ((grid[0] - y) / tall) ** 2 + ((grid[1] - x) / wide) ** 2 <= 1 + 1e-9
    assert np.array_equal(source, ellipse)


def test_copies_and_decoys_look_alike_around_their_outline() -> None:
    """Neither grey levels nor steps at an outline tell a copy from a decoy: with decoys, most steps are not marked."""

    def steps(decoys: int) -> tuple[float, float]:
        batch = CopyMoveDataset(64, decoys, seed=2).make_batch(np.arange(300))
        jump = np.abs(np.diff(batch.images.astype(int), axis=2))
        outline = np.diff(batch.targets.astype(int), axis=2) != 0
        return float(jump[outline].mean()), float(jump[~outline].mean())

    (marked, other), (_, other_with_decoys) = steps(0), steps(3)
    assert marked > 1.2 * other  # the copy's half of it; the source has none
    assert other_with_decoys > 1.02 * other


def test_distances_are_straight_from_the_middle_of_the_source() -> None:
    data = CopyMoveDataset(64)
    assert isinstance(data, DenseDataset)
    y, x = data.make_batch(np.array([5])).dots[0]
    distance = data.distance(5)
    down, right = data.shift(5)
    assert distance[y, x] == 0 and distance[y, (x + 3) % 64] == abs((x + 3) % 64 - x)
    assert distance[y + down, x + right] == pytest.approx(np.hypot(down, right))
    data.gives_distance = True
    assert float(data[5][3]["distance"][y + down, x + right]) == pytest.approx(np.hypot(down, right) / 64)


@pytest.mark.parametrize(("wrong", "match"), [({"img_size": 16}, "img_size"), ({"decoys": 4}, "decoys")])
def test_numbers_are_checked(wrong: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        CopyMoveDataset(**wrong)
    with pytest.raises(TypeError, match="whole"):
        CopyMoveDataset(decoys=0.5)


def test_each_region_has_a_tone_of_its_own_and_its_copy_the_same() -> None:
    """Copies are exact, decoys differ from them by more than textures vary, and without tones nothing changes."""
    data = CopyMoveDataset(64, 2, tones=True, seed=3)
    batch = data.make_batch(np.arange(30))
    plain = CopyMoveDataset(64, 2, seed=3).make_batch(np.arange(30))
    assert np.array_equal(batch.targets, plain.targets) and np.array_equal(batch.dots, plain.dots)
    assert not np.array_equal(batch.images, plain.images)
    changed = []
    for index, (image, target, (y, x)) in enumerate(zip(batch.images, batch.targets, batch.dots, strict=True)):
        down, right = data.shift(index)
        both = label(target, connectivity=1)
        source, copy = both == both[y, x], both == both[y + down, x + right]
        assert np.array_equal(image[source], image[copy])
        around = np.roll(source, 20, 0) & (target == 0)
        changed.append(abs(float(image[source].mean()) - float(image[around].mean())) if around.any() else 0.0)
    assert np.median(changed) > 20
