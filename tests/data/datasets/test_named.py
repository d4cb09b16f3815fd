from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from castvision.data.datasets.named import NamedDataset, open_named
from castvision.data.reading.labels import LabelMap


def test_torchvision_by_name():
    source = open_named("torchvision/FakeData", "", size=3, image_size=(3, 8, 6), num_classes=4)
    data = NamedDataset(source, "FakeData", LabelMap(list("abcd")), indices=[2, 0])
    image, label = data[0]
    assert len(data) == 2
    assert (image.shape, image.dtype, label.dtype, label.ndim) == ((3, 8, 6), torch.float32, torch.int64, 0)
    assert int(label) == int(source[2][1])
    assert data.name(0) == "FakeData[2]"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
def test_timm_folders_by_name(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("L", (6, 4), 51).save(tmp_path / "train" / name / "a.png")
    data = NamedDataset(open_named("timm/", str(tmp_path), split="train"), "folder", LabelMap(["cat", "dog"]))
    assert [int(data[place][1]) for place in range(2)] == [0, 1]
    torch.testing.assert_close(data[0][0], torch.full((1, 4, 6), 0.2))  # grey stays grey


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open
def test_timm_keeps_16_bits_and_skips_nothing(tmp_path):
    (tmp_path / "train/cat").mkdir(parents=True)
    Image.fromarray(np.full((4, 6), 257, np.uint16)).save(tmp_path / "train/cat/a.png")
    (tmp_path / "train/cat/b.png").write_text("no image")
    data = NamedDataset(open_named("timm/", str(tmp_path), split="train"), "folder", LabelMap(["cat"]))
    assert data[0][0].unique().tolist() == pytest.approx([1 / 255])
    with pytest.raises(ValueError, match=r"cannot read folder\[1\]"):
        data[1]
    with pytest.raises(ValueError, match="expected a folder val or valid"):
        open_named("timm/", str(tmp_path), split="validation")


def test_masks_of_a_real_layout(tmp_path):
    base = tmp_path / "oxford-iiit-pet"
    (base / "images").mkdir(parents=True)
    (base / "annotations/trimaps").mkdir(parents=True)
    Image.new("RGB", (5, 4)).save(base / "images/a.jpg")
    Image.fromarray(np.array([[1, 2, 3, 1, 1]] * 4, np.uint8)).save(base / "annotations/trimaps/a.png")
    (base / "annotations/trainval.txt").write_text("a 1 1 1\n")
    source = open_named("torchvision/OxfordIIITPet", str(tmp_path), target_types="segmentation")
    assert isinstance(source, OxfordIIITPet)
    labels = LabelMap(["background", "pet"], {1: "pet", 2: 0, 3: "ignore"})
    image, mask = NamedDataset(source, "pets", labels)[0]
    assert image.shape == (3, 4, 5)
    assert mask[0].tolist() == [1, 0, 255, 1, 1]
    with pytest.raises(ValueError, match=r"got 3; translate"):
        NamedDataset(source, "pets", LabelMap(["a", "b", "c"]))[0]


class Items:
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        return self.items[place]


def test_kinds_of_images_and_targets():
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    items = Items(
        (palette, palette),
        (torch.rand(5, 4, 4), torch.tensor([0, 1])),
        (np.full((4, 4), 65535, np.uint16), 1),
    )
    data = NamedDataset(items, "mine", LabelMap(["a", "b"]))
    assert data[0][0][:, 0, 0].tolist() == [1, 0, 0]
    assert data[0][1].unique().tolist() == [1]
    assert data[1][0].shape == (5, 4, 4)
    assert data[1][1].tolist() == [0.0, 1.0]
    assert data[2][0].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((Image.new("L", (4, 4)), (1, 2)), r"expected one target from mine\[0\]"),
        ((Image.new("L", (4, 4)), {"boxes": 1}), "choose one kind of target"),
        ((Image.new("L", (4, 4)), 7), r"'mine\[0\]' for 2 classes, got 7"),
        ((Image.new("L", (4, 4)), torch.tensor([0, 1, 1])), "expected 2 zeros and ones"),
        ((Image.new("L", (4, 4)), Image.new("L", (5, 4))), "of one size"),
        (("text", 0), "expected an image"),
        (Image.new("L", (4, 4)), r"expected \(image, target\)"),
    ],
)
def test_items_that_cannot_be_used(item, message):
    with pytest.raises(ValueError, match=message):
        NamedDataset(Items(item), "mine", LabelMap(["a", "b"]))[0]


def test_nothing_is_fetched_unasked(tmp_path):
    with pytest.raises(FileNotFoundError, match="set download: true"):
        open_named("torchvision/CIFAR10", str(tmp_path))
    with pytest.raises(ValueError, match="set download: true if that is wanted"):
        open_named("timm/hfds/someone/something", str(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR10", "expected name torchvision/CLASS or timm/NAME"),
        ("torchvision/CIFAR1", "CIFAR10"),
        ("torchvision/__all__", "no data set"),
        ("timm/wds/x", "streamed"),
    ],
)
def test_names_are_checked(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_named(name, str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot open torchvision/FakeData: .*colour"):
        open_named("torchvision/FakeData", "", colour=1)
