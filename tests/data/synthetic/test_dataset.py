"""What holds for all dense tasks: one image for a key, however it is asked for, and the same ones for ever."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from castvision.data.synthetic import CopyMoveDataset, MazeDataset, PathfinderSegDataset, RegionDataset
from castvision.data.synthetic.dataset import geodesic_distance
from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec

MAKERS = {
    "maze": lambda **key: MazeDataset(64, 8, 0.5, **key),
    "maze, small cells": lambda **key: MazeDataset(64, 4, **key),
    "region": lambda **key: RegionDataset(64, 3, **key),
    "copy-move": lambda **key: CopyMoveDataset(64, **key),
    "three-class": lambda **key: PathfinderSegDataset(64, **key),
    "one-dot": lambda **key: PathfinderSegDataset(64, "one-dot", **key),
}
HASHES = {
    "maze": "522b8beb08713ee1",
    "maze, small cells": "b1796d54051af1f6",
    "copy-move": "de7351dc39cb9a31",
    "region": "a6c79cb5dffeedfd",
    "three-class": "cf214244fa4bc7a3",
    "one-dot": "09c779b8a1d8be47",
}


@pytest.mark.parametrize("name", MAKERS)
def test_the_first_images_never_change(name: str) -> None:
    """A change here makes another data set: results on the old one no longer compare."""
    batch = MAKERS[name]().make_batch(np.arange(64))
    digest = hashlib.sha256(batch.images.tobytes() + batch.targets.tobytes()).hexdigest()[:16]
    assert digest == HASHES[name]


ITEMS = {
    **{name: lambda make=make, **key: make(**key) for name, make in MAKERS.items()},
    "classify": lambda **key: PathfinderDataset(PathfinderSpec(32, contour_length=6), **key),
    "join": lambda **key: PathfinderDataset(PathfinderSpec(32, contour_length=6), "join", **key),
}
KEYS = [(0, "train"), (0, "val"), (7, "test")]
HASHES_BY_KEY = {
    "maze": ["06ec871ad381b4d9", "ff95388067416016", "74e863144283c43f"],
    "maze, small cells": ["743949c8b5b74232", "fb360ae977a6e11d", "b5cb25c3ab97c9d5"],
    "copy-move": ["ae8ad0689f504d9b", "2170920982465e48", "6a5cc2d136105581"],
    "region": ["b4d0a3182ac23c9a", "ffc86b09c8561094", "348eead7f617be61"],
    "three-class": ["f64c101e581f6821", "32dbec0f15e51036", "20ab21f83ab68c66"],
    "one-dot": ["9f864b82df44df0a", "38fcc8a023814e4d", "af7dab45a11987ed"],
    "classify": ["3f0efeb92bc9e658", "f3d431064b9e30c0", "0a4cffda7cef6467"],
    "join": ["f17c13a40e455192", "66872c08d6b84a12", "d58cad9becb8b23b"],
}


@pytest.mark.parametrize("name", ITEMS)
def test_seed_split_and_index_decide_an_item_for_ever(name: str) -> None:
    """Items as models get them, one at a time and late ones too, of several seeds and splits."""
    found = []
    for seed, split in KEYS:
        data, digest = ITEMS[name](seed=seed, split=split), hashlib.sha256()
        for index in (0, 1, 1000, 2**30):
            for part in data[index][:2]:
                digest.update(torch.as_tensor(part).numpy().tobytes())
        found.append(digest.hexdigest()[:16])
    assert found == HASHES_BY_KEY[name]


@pytest.mark.parametrize("name", MAKERS)
def test_items(name: str) -> None:
    data = MAKERS[name](length=10)
    image, target = data[3]
    assert (image.shape, image.dtype) == ((1, 64, 64), torch.float32)
    assert (target.shape, target.dtype) == ((64, 64), torch.int64)
    assert image.min() == -1 and image.max() == 1
    assert 0 <= target.min() and target.max() < len(data.class_names)
    assert len(data) == 10 and torch.equal(data[-7][0], image)
    distance = data.distance(3)
    assert (distance.shape, distance.dtype) == ((64, 64), np.float32)
    assert np.array_equal(distance, data.distance(-7))
    with pytest.raises(IndexError, match="below 10"):
        data[10]


@pytest.mark.parametrize("name", MAKERS)
def test_a_key_gives_one_image_however_it_is_asked_for(name: str) -> None:
    data = MAKERS[name](seed=5, length=40)
    together = data.__getitems__([7, 3, 11])
    for (image, target), index in zip(together, [7, 3, 11], strict=True):
        alone_image, alone_target = data[index]
        assert torch.equal(image, alone_image) and torch.equal(target, alone_target)
    loaders = [
        DataLoader(data, batch_size=8, num_workers=w, multiprocessing_context="fork" if w else None) for w in (0, 2)
    ]
    for (image, target), (other_image, other_target) in zip(*loaders, strict=True):
        assert torch.equal(image, other_image) and torch.equal(target, other_target)


@pytest.mark.parametrize("name", MAKERS)
def test_splits_and_seeds_share_no_image(name: str) -> None:
    keys = [(seed, split) for seed in (0, 1) for split in ("train", "val", "test")]
    images = [MAKERS[name](seed=seed, split=split).make_batch(np.arange(50)).images for seed, split in keys]
    assert len(np.unique(np.concatenate(images).reshape(300, -1), axis=0)) == 300


def test_geodesic_distances_of_a_picture_done_by_hand() -> None:
    passable = np.array([[1, 1, 1, 0], [0, 0, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1]], bool)
    inf = math.inf
    expected = [[0, 1, 2, inf], [inf, inf, 3, inf], [inf, inf, 4, 5], [inf, inf, inf, 6]]
    assert geodesic_distance(passable, (0, 0)).tolist() == expected
    assert not np.isfinite(geodesic_distance(passable, (1, 0))).any()
    with pytest.raises(ValueError, match="start"):
        geodesic_distance(passable, (4, 0))
    with pytest.raises(ValueError, match="height, width"):
        geodesic_distance(passable[0], (0, 0))
