from __future__ import annotations

import pytest
import torch

from castvision.training.data.synthetic import PathfinderDataModule


@pytest.mark.parametrize(
    ("task", "classes", "shape"), [("classify", 2, ()), ("join", 2, (32, 32)), ("three-class", 3, (32, 32))]
)
def test_batches_and_names(task, classes, shape):
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
    }


def test_each_epoch_is_new_and_each_run_the_same():
    def images(epoch, workers):
        data = PathfinderDataModule("join", contour_length=6, train_length=8, batch_size=4, num_workers=workers)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return torch.cat([batch[0] for batch in loader])

    assert torch.equal(images(1, 0), images(1, 1))
    assert not torch.equal(images(1, 0), images(0, 0))


def test_numbers_are_checked():
    with pytest.raises(ValueError, match="train_length >= batch_size"):
        PathfinderDataModule(train_length=8, batch_size=16)
    with pytest.raises(ValueError, match="img_size"):
        PathfinderDataModule(img_size=8)
