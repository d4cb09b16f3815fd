from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.data.datasets.batch import Batch
from castvision.training.data.synthetic import (
    CopyMoveDataModule,
    MazeDataModule,
    PathfinderDataModule,
    PathfinderSegDataModule,
    RegionDataModule,
)

SMALL = {"img_size": 64, "train_length": 8, "val_length": 6, "batch_size": 4, "num_workers": 0}


@pytest.mark.parametrize(
    ("make", "options", "classes"),
    [
        (MazeDataModule, {"cell": 8, "winding": 0.5}, 2),
        (RegionDataModule, {"radius": 3}, 2),
        (CopyMoveDataModule, {}, 2),
        (PathfinderSegDataModule, {}, 3),
        (PathfinderSegDataModule, {"form": "one-dot", "contour_length": 6}, 2),
    ],
)
def test_batches_and_names(make, options, classes):
    data = make(**SMALL, **options)
    images, targets = next(iter(data.train_dataloader()))
    assert (images.shape, targets.shape, targets.dtype) == ((4, 1, 64, 64), (4, 64, 64), torch.int64)
    assert -1 == images.min() < images.max() == 1
    assert len(data.class_names) == classes and targets.max() < classes
    assert len(data.val_dataloader().dataset) == 6
    batch = Batch(*next(iter(data.val_dataloader())))
    assert batch.extras == {}
    distance = batch.truth["distance"]
    assert (distance.shape, distance.dtype) == (batch.target.shape, torch.float32)
    along = torch.from_numpy(data.dataset("val").distance(1)) / 64
    torch.testing.assert_close(distance[1][along.isfinite()], along[along.isfinite()])
    y, x = data.dataset("val").make_batch(np.arange(2)).dots[1]
    straight = np.hypot(*(np.indices((64, 64)) - [[[y]], [[x]]])) / 64
    torch.testing.assert_close(distance[1], torch.from_numpy(straight).float().where(along.isinf(), along))
    assert data.description() == {
        "in_chans": 1,
        "img_size": [64, 64],
        "mean": [0.5],
        "std": [0.5],
        "keeps_units": False,
        "resize": "none",
    }


def test_options_reach_the_data():
    assert MazeDataModule(**SMALL, cell=16).dataset("val").cell == 16
    assert CopyMoveDataModule(**SMALL, decoys=3).dataset("train").decoys == 3
    assert RegionDataModule(**SMALL, share=0.55, seed=3).dataset("test").seed == 3
    assert PathfinderSegDataModule(**SMALL, contour_length=7).dataset("train").spec.contour_length == 7


def test_each_epoch_is_new_and_each_run_the_same():
    def images(epoch):
        loader = MazeDataModule(**SMALL, cell=8).train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch[0] for batch in loader])

    assert torch.equal(images(1), images(1))
    assert not torch.equal(images(1), images(0))


def test_numbers_are_checked():
    with pytest.raises(ValueError, match="train_length >= batch_size"):
        MazeDataModule(train_length=8, batch_size=16)
    with pytest.raises(ValueError, match="form"):
        PathfinderSegDataModule(64, form="two-dots")
    with pytest.raises(ValueError, match="batch_size"):
        RegionDataModule(64, batch_size=0)


@pytest.mark.parametrize(
    ("task", "classes", "shape"), [("classify", 2, ()), ("join", 2, (32, 32)), ("three-class", 3, (32, 32))]
)
def test_pathfinder_batches_and_names(task, classes, shape):
    data = PathfinderDataModule(task, contour_length=6, train_length=8, val_length=6, batch_size=4, num_workers=0)
    images, targets = next(iter(data.train_dataloader()))
    assert (images.shape, targets.shape, targets.dtype) == ((4, 1, 32, 32), (4, *shape), torch.int64)
    assert -1 <= images.min() < images.max() <= 1
    assert len(data.class_names) == classes
    assert len(data.val_dataloader().dataset) == 6
    assert data.description() == {
        "in_chans": 1,
        "img_size": [32, 32],
        "mean": [0.5],
        "std": [0.5],
        "keeps_units": False,
        "resize": "none",
    }


def test_each_epoch_of_pathfinder_is_new_and_each_run_the_same():
    def images(epoch, workers):
        data = PathfinderDataModule("join", contour_length=6, train_length=8, batch_size=4, num_workers=workers)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch[0] for batch in loader])

    assert torch.equal(images(1, 0), images(1, 1))
    assert not torch.equal(images(1, 0), images(0, 0))


def test_numbers_of_pathfinder_are_checked():
    with pytest.raises(ValueError, match="train_length >= batch_size"):
        PathfinderDataModule(train_length=8, batch_size=16)
    with pytest.raises(ValueError, match="img_size"):
        PathfinderDataModule(img_size=8)


PATHS = {"contour_length": 6, "train_length": 8, "val_length": 6, "batch_size": 4, "num_workers": 0}


def _numbers(data, epoch):
    """Which images an epoch has, by their pixels."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return {image.numpy().tobytes() for batch in loader for image in batch[0]}


def test_a_stored_set_comes_again_in_another_order():
    stored, endless = (PathfinderDataModule(**PATHS, fresh=fresh) for fresh in (False, True))
    assert _numbers(stored, 0) == _numbers(stored, 1) == _numbers(endless, 0) != _numbers(endless, 1)
    first, second = (list(stored.sampler(stored.dataset("train"))), list(range(8)))
    assert sorted(first) == second and first != second


def test_training_images_grow_harder_turn_and_bring_their_paths_held_out_ones_do_not():
    options = {"symmetries": True, "gives_paths": True, "curriculum": {3: 4}}
    data = PathfinderDataModule(**PATHS, **options)
    train, plain = data.dataset("train"), PathfinderDataModule(**PATHS)
    assert [stage.spec.contour_length for stage in train.stages] == [3, 6] and train.ends.tolist() == [4]
    assert [train.stage_of(index) for index in (3, 4)] == [0, 1]
    batch = Batch(*next(iter(data.train_dataloader())))
    assert batch.truth["paths"].shape == (4, 32, 32) and batch.target.shape == (4,)
    for (image, label), (same, same_label) in zip(data.dataset("val"), plain.dataset("val"), strict=False):
        assert torch.equal(image, same) and label == same_label


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"curriculum": {3: 4}, "fresh": False}, "no curriculum where the same images"),
        ({"curriculum": {3: 4, 5: 4}}, "growing"),
        ({"gives_paths": True, "task": "join"}, "task='classify' only"),
    ],
)
def test_options_that_do_not_fit_together(options, match):
    with pytest.raises(ValueError, match=match):
        PathfinderDataModule(**PATHS, **options)
