from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from castvision.training.data.classification import ImageFolderDataModule, read_rgb


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for name, colour in (("cat", 255), ("dog", 0)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("L", (40, 32), colour).save(folder / f"{number}.png")
    return tmp_path


def test_images_and_facts(root):
    data = ImageFolderDataModule(str(root), img_size=16, batch_size=2, num_workers=0)
    assert data.class_names == ["cat", "dog"]
    assert data.description()["img_size"] == [16, 16]
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (6, 3, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    white = (1 - torch.tensor(data.mean)) / torch.tensor(data.std)
    torch.testing.assert_close(images[0].mean(dim=(1, 2)), white)


def test_a_test_folder_is_optional_until_it_is_asked_for(root):
    with pytest.raises(FileNotFoundError, match="test"):
        ImageFolderDataModule(str(root), num_workers=0).test_dataloader()


def test_missing_and_half_written_folders(root):
    with pytest.raises(FileNotFoundError, match="one folder for each class"):
        ImageFolderDataModule(str(root / "nowhere"))
    (root / "val" / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"1\.png' is an empty file"):
        ImageFolderDataModule(str(root))
    (root / "val" / "dog" / "1.png").unlink()
    (root / "val" / "bird").mkdir()
    with pytest.raises(FileNotFoundError, match="bird"):
        ImageFolderDataModule(str(root))
    Image.new("L", (4, 4)).save(root / "val" / "bird" / "0.png")
    with pytest.raises(ValueError, match=r"same classes in train and val of .* differing: \['bird'\]"):
        ImageFolderDataModule(str(root))


def test_a_damaged_image_is_named(root):
    path = root / "val" / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:40])
    data = ImageFolderDataModule(str(root), num_workers=0)
    with pytest.raises(ValueError, match=r"cannot read image .*0\.png"):
        data.dataset("val")[0]


def test_numbers_and_augmentation_are_checked(root):
    with pytest.raises(ValueError, match="batch_size=0"):
        ImageFolderDataModule(str(root), batch_size=0)
    with pytest.raises(ValueError, match="create_transform"):
        ImageFolderDataModule(str(root), augmentation={"auto_augmnt": "x"})
    assert ImageFolderDataModule(str(root), augmentation={"hflip": 0.0}).augmentation == {"hflip": 0.0}


def test_16_bit_channels_are_rounded_not_cut(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((4, 4, 3), 257 * 100 + 200, np.uint16))  # 100.78 of 255
    assert np.asarray(read_rgb(str(tmp_path / "a.png"))).tolist() == [[[101] * 3] * 4] * 4
