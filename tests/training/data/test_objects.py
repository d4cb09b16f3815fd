from __future__ import annotations

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from castvision.data.datasets.batch import Batch, pad_collate
from castvision.data.datasets.objects import find_objects
from castvision.data.transforms.augmentation import Augmentation, SampleTransform
from castvision.training.data.objects import InstanceDataModule
from castvision.training.data.pixel_data import ImageFormat
from tests.training.tasks.test_instances import squares

SMALL = {"img_size": 32, "num_workers": 0, "batch_size": 2}
VARIED = Augmentation(scale=(0.7, 1.4), hflip=0.5, vflip=0.5, rot90=1.0)


def test_classes_and_objects_follow_every_augmentation(tmp_path):
    """The image says which object a pixel is of: image, classes and numbers stay together, padding is nothing."""
    numbers = np.kron(np.arange(16).reshape(4, 4), np.ones((12, 12), int)).astype(np.uint16)
    transform = SampleTransform(64, (0.0,), (1.0,), augmentation=VARIED, fit=False)
    torch.manual_seed(0)
    seen = set()
    for _ in range(12):
        image, target, extras, truth = transform.with_objects(
            (numbers * 1000).astype(np.uint16)[..., None], (numbers > 0).astype(np.uint8), numbers
        )
        real, objects = extras["pixel_mask"], truth["objects"]
        assert objects.dtype == torch.int64
        assert (target[real] == (objects[real] > 0).long()).all()
        assert (target[~real] == 255).all()
        assert not objects[~real].any()
        shown = image[0] * 65535 / 1000
        assert ((shown - objects).abs()[real] < 0.5).float().mean() > 0.75  # elsewhere borders are blended
        seen |= set(objects.unique().tolist())
    assert len(seen) == 16


def test_batches_hold_padded_numbers(tmp_path):
    data = InstanceDataModule(str(squares(tmp_path)), **SMALL)
    assert data.class_names == ["background", "object"]
    assert data.resize == "none"
    batch = Batch(*next(iter(data.train_dataloader())))
    assert batch.image.shape == (2, 1, 32, 32)
    assert batch.truth["objects"].shape == batch.target.shape == (2, 32, 32)
    assert ((batch.truth["objects"] > 0) == (batch.target == 1)).all()
    held_out = Batch(*next(iter(data.val_dataloader())))
    assert held_out.image.shape == (1, 1, 48, 48)
    assert held_out.truth["objects"].max() == 8


def test_masks_of_classes_beside_those_of_objects(tmp_path):
    root = squares(tmp_path)
    for split in ("train", "val", "test"):
        (root / split / "masks").mkdir()
        for path in (root / split / "objects").iterdir():
            objects = tifffile.imread(path)
            labels = np.where(objects > 0, 1 + objects % 2, 0).astype(np.uint8)
            labels[:2] = 255
            tifffile.imwrite(root / split / "masks" / path.name, labels)
    (root / "classes.txt").write_text("background\nodd\neven\n")
    data = InstanceDataModule(str(root), **SMALL)
    assert data.class_names == ["background", "odd", "even"]
    batch = Batch(*next(iter(data.val_dataloader())))
    assert set(batch.target.unique().tolist()) == {0, 1, 2, 255}


def test_what_is_missing_or_does_not_fit_is_refused(tmp_path):
    root = squares(tmp_path / "data")
    with pytest.raises(ValueError, match=r"expected pixels.fit: false for objects"):
        InstanceDataModule(str(root), pixels=ImageFormat(), **SMALL)
    with pytest.raises(ValueError, match="expected masks of classes beside those of objects for 3 classes"):
        InstanceDataModule(str(root), class_names=["background", "a", "b"], **SMALL)
    path = root / "train/objects/1.tif"
    tifffile.imwrite(path, np.zeros((48, 48), np.float32))
    with pytest.raises(ValueError, match="whole number"):
        InstanceDataModule(str(root), **SMALL)
    tifffile.imwrite(path, np.zeros((40, 48), np.uint16))
    with pytest.raises(ValueError, match="image and mask of one size"):
        InstanceDataModule(str(root), **SMALL)
    path.unlink()
    with pytest.raises(ValueError, match="has no mask '1'"):
        find_objects(root)
    with pytest.raises(FileNotFoundError):
        find_objects(tmp_path)


def test_numbers_that_a_jpeg_made_up_are_refused(tmp_path):
    root = squares(tmp_path)
    path = root / "train/objects/1.tif"
    Image.fromarray(tifffile.imread(path).astype(np.uint8)).save(path, "JPEG")
    with pytest.raises(ValueError, match=r"exact numbers of objects in .*1\.tif.*got a JPEG.*PNG or TIFF"):
        InstanceDataModule(str(root), **SMALL)


def test_objects_have_the_class_that_is_no_background(tmp_path):
    root = squares(tmp_path)
    with pytest.raises(
        ValueError, match=r"the background first, .* got the classes nucleus, background; name them back"
    ):
        InstanceDataModule(str(root), class_names=["nucleus", "background"], **SMALL)
    assert InstanceDataModule(str(root), class_names=["Background", "nucleus"], **SMALL).class_names[1] == "nucleus"


def test_further_truth_is_padded_with_nothing():
    samples = [
        (torch.ones(1, rows, 3), torch.ones(rows, 3).long(), {}, {"objects": torch.full((rows, 3), 7)})
        for rows in (2, 4)
    ]
    batch = pad_collate(samples, multiple=4)
    assert batch.truth["objects"].shape == (2, 4, 4)
    assert batch.truth["objects"][0].tolist() == [[7, 7, 7, 0]] * 2 + [[0] * 4] * 2
    assert (batch.truth["objects"] > 0).sum() == batch.extras["pixel_mask"].sum()
