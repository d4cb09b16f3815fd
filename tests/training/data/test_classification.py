from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps
from torchvision.datasets import CIFAR10

from castvision.data import open_image
from castvision.data.datasets.lra import LRAImage
from castvision.inference.predictor import load_model
from castvision.inference.writers.preview import read_reduced
from castvision.models.recipe import InputFormat, Recipe, build
from castvision.models.recipe import save as save_model
from castvision.training.data.classification import (
    CIFAR10_NAMES,
    ImageFolderDataModule,
    LRAImageDataModule,
    LRAPathfinderDataModule,
)
from tests.data.image_files import save_apart


class TinyCIFAR(CIFAR10):
    """CIFAR's own format without the checksums of the real files."""

    train_list = [("data_batch_1", None)]  # noqa: RUF012  # torchvision's attribute
    test_list = [("test_batch", None)]  # noqa: RUF012
    meta = {"filename": "batches.meta", "key": "label_names", "md5": None}  # noqa: RUF012


def write_cifar(root, count=40):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("data_batch_1", "test_batch"):
        content = {
            "data": rng.integers(0, 256, (count, 3072), np.uint8),
            "labels": [place % 10 for place in range(count)],
        }
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CIFAR10_NAMES}))


def test_image_task(tmp_path, monkeypatch):
    monkeypatch.setattr(LRAImage, "source", TinyCIFAR)
    write_cifar(tmp_path)
    data = LRAImageDataModule(str(tmp_path), batch_size=4, num_workers=0)
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [36, 4, 40]
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (16, 1, 32, 32)
    assert labels.tolist() == [place % 10 for place in range(16)]
    assert data.class_names[int(labels[3])] == "cat"


def test_missing_and_damaged_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="set download: true to fetch it"):
        LRAImageDataModule(str(tmp_path))
    write_cifar(tmp_path)
    with pytest.raises(FileNotFoundError, match="cannot read CIFAR-10"):
        LRAImageDataModule(str(tmp_path)).dataset("train")


def _write_pathfinder(root, count=20, size=32):
    (root / "imgs" / "0").mkdir(parents=True)
    (root / "metadata").mkdir()
    rows = []
    for number in range(count):
        name = f"sample_{number}.png"
        Image.new("L", (size, size), 12 * number).save(root / "imgs" / "0" / name)
        rows.append(" ".join(["imgs/0", name, str(number), str(number % 2), *["1"] * 7]))
    (root / "metadata" / "0.npy").write_text("\n".join(rows) + "\n")


def test_pathfinder_folder(tmp_path):
    _write_pathfinder(tmp_path)
    data = LRAPathfinderDataModule(str(tmp_path), batch_size=4, num_workers=0)
    assert [len(data.dataset(split)) for split in ("train", "val", "test")] == [16, 2, 2]
    images, labels = next(iter(data.train_dataloader()))
    assert (images.shape, labels.shape) == ((4, 1, 32, 32), (4,))


def test_pathfinder_folder_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="castvision make-pathfinder"):
        LRAPathfinderDataModule(str(tmp_path))
    _write_pathfinder(tmp_path)
    with pytest.raises(ValueError, match=r"expected images of 64 × 64 .* got \(32, 32\); set resolution"):
        LRAPathfinderDataModule(str(tmp_path), resolution=64)
    (tmp_path / "imgs/0/sample_3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"sample_3\.png"):
        LRAPathfinderDataModule(str(tmp_path))


def test_too_few_images(tmp_path):
    _write_pathfinder(tmp_path, count=4)
    with pytest.raises(ValueError, match="ten images or more"):
        LRAPathfinderDataModule(str(tmp_path))


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for name, colour in (("cat", 255), ("dog", 0)):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                save_apart(Image.new("L", (40, 32), colour), folder / f"{number}.png")
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


def test_images_of_more_bands_are_sent_to_lists(root):
    for number, path in enumerate(sorted(root.glob("*/*/*.png"))):
        bands = np.full((12, 12, 5), number, np.uint16)  # each of its own content, for the splits' sake
        tifffile.imwrite(path.with_suffix(".tif"), bands, photometric="minisblack", planarconfig="contig")
        path.unlink()
    with pytest.raises(ValueError, match=r"grey or RGB images in folders of classes, got 5 channels.*multilabel_csv"):
        ImageFolderDataModule(str(root), img_size=16)


def test_numbers_and_augmentation_are_checked(root):
    with pytest.raises(ValueError, match="batch_size=0"):
        ImageFolderDataModule(str(root), batch_size=0)
    with pytest.raises(ValueError, match="create_transform"):
        ImageFolderDataModule(str(root), augmentation={"auto_augmnt": "x"})
    assert ImageFolderDataModule(str(root), augmentation={"hflip": 0.0}).augmentation == {"hflip": 0.0}


def _deep_folder(root, mode):
    """Pictures that use 200 to 440 of 65,535 values (or of the floats)."""
    y, x = np.mgrid[:48, :48]
    for split in ("train", "val"):
        for name, offset in {"dim": 200, "bright": 230}.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = offset + 210 * (0.5 + 0.5 * np.sin(x / 5 + number) * np.cos(y / 7))
                if mode == "grey":
                    Image.fromarray(pixels.astype(np.uint16)).save(folder / f"{number}.png")
                else:
                    cv2.imwrite(str(folder / f"{number}.png"), np.stack([pixels] * 3, -1).astype(np.uint16))
    return root


@pytest.mark.parametrize("mode", ["grey", "colour"])
def test_12_bits_in_16_keep_their_depth_and_their_contrast(tmp_path, mode, caplog):
    root = _deep_folder(tmp_path, mode)
    augmentation = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25}
    data = ImageFolderDataModule(str(root), img_size=48, batch_size=2, num_workers=0, augmentation=augmentation)
    values = np.concatenate([data.dataset("val")[index][0][0].numpy().ravel() for index in range(6)])
    assert len(np.unique(values)) > 200  # 8 bits would leave two of them
    assert values.std() == pytest.approx(1, abs=0.3)
    assert abs(values.mean()) < 0.3
    image, _ = data.dataset("train")[0]
    assert image.shape == (3, 48, 48)
    assert torch.isfinite(image).all()
    pickle.loads(pickle.dumps(data.dataset("train")))


def test_what_holds_no_data_is_the_mean_of_deep_images_in_training_and_prediction(tmp_path):
    root = _deep_folder(tmp_path, "grey")
    for path in root.rglob("*.png"):
        pixels = np.array(Image.open(path))
        pixels[:, :24] = 65_535
        tifffile.imwrite(path.with_suffix(".tif"), pixels, extratags=[(42113, "s", 0, "65535", True)])
        path.unlink()
    data = ImageFolderDataModule(str(root), img_size=48, batch_size=2, num_workers=0)
    image = data.dataset("val")[0][0]
    torch.testing.assert_close(image[..., :20], torch.zeros(3, 48, 20), rtol=0, atol=1e-4)
    assert image[..., 28:].std() > 0.5  # measured without the fill value
    seen = InputFormat(3, (48, 48), tuple(data.mean), tuple(data.std), resize="crop")
    recipe = Recipe("classification", "cast_vit_atto_patch4_32", 2, ("bright", "dim"), {"in_chans": 3}, input=seen)
    save_model(tmp_path / "a.ckpt", recipe, build(recipe))
    with open_image(data.dataset("val").samples[0][0]) as reader:
        prepared = load_model(tmp_path / "a.ckpt").prepare_whole(read_reduced(reader, 4096))
    torch.testing.assert_close(prepared[0], image, rtol=0, atol=0)


def test_no_policy_asks_for_a_picture_of_0_bits(root, monkeypatch):
    """timm's strongest posterising, which Pillow 13 refuses; the shipped policy draws it about once in 750 images."""
    bits = []
    monkeypatch.setattr(ImageOps, "posterize", lambda image, number: bits.append(number) or image)
    policies = ["rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5", "rand-m1", "augmix-m5", "original", "v0", "originalr", "3a"]
    for policy in policies:
        data = ImageFolderDataModule(
            str(root), img_size=32, batch_size=1, num_workers=0, augmentation={"auto_augment": policy}
        )
        steps = data.dataset("train").transform.shallow.transforms
        groups = [group for step in steps for group in (getattr(step, "ops", []), *getattr(step, "policy", []))]
        for operation in (operation for group in groups for operation in group):
            if operation.name.startswith("Posterize"):
                for level in range(11):
                    bits += operation.level_fn(level, operation.hparams)
    assert bits
    assert min(bits) == 1
