"""One image in two splits, and strays in folders: the same answer from every data module that reads files."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from castvision.data.datasets.window_folders import find_pairs
from castvision.training.data.classification import ImageFolderDataModule, LRAPathfinderDataModule
from castvision.training.data.multilabel import MultiLabelCsvDataModule
from castvision.training.data.named_data import NamedDataModule
from castvision.training.data.pixel_data import CocoDataModule, SegmentationDataModule
from castvision.training.data.windows import WindowDataModule
from tests.data.reading.test_folders import STRAYS

SMALL = {"batch_size": 1, "num_workers": 0}
RNG = np.random.default_rng(0)


def save(path: Path, size=(12, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def save_mask(path: Path, size=(12, 16)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 2, size, dtype=np.uint8)).save(path)


class Layout:
    """Images in the places of a data module, and the module of what lies there."""

    def place(self, root: Path, split: str, name: str) -> Path:
        return root / split / f"{name}.png"

    def target(self, root: Path, split: str, name: str) -> None:
        """What goes with an image."""

    def images(self, root: Path, split: str) -> list[Path]:
        return sorted((root / split).glob("*.png"))

    def open(self, root: Path):
        raise NotImplementedError


class Folders(Layout):
    def place(self, root, split, name):
        return root / split / "images" / f"{name}.png"

    def target(self, root, split, name):
        save_mask(root / split / "masks" / f"{name}.png")

    def open(self, root):
        return SegmentationDataModule(str(root), ["a", "b"], img_size=16, **SMALL)


class Lists(Layout):
    def target(self, root, split, name):
        save_mask(root / "masks" / f"{split}{name}.png")

    def open(self, root):
        for split in ("train", "val"):
            rows = [f"{split}/{path.name},masks/{split}{path.name}" for path in self.images(root, split)]
            (root / f"{split}.csv").write_text("\n".join(["image,mask", *rows]))
        return SegmentationDataModule(str(root), ["a", "b"], img_size=16, **SMALL)


class OneList(Lists):
    def open(self, root):
        rows = [
            f"{split}/{path.name},masks/{split}{path.name},{split}"
            for split in ("train", "val")
            for path in self.images(root, split)
        ]
        (root / "all.csv").write_text("\n".join(["image,mask,split", *rows]))
        return SegmentationDataModule(str(root / "all.csv"), ["a", "b"], img_size=16, **SMALL)


class Coco(Layout):
    def open(self, root):
        for split in ("train", "val"):
            names = [path.name for path in self.images(root, split)]
            content = {
                "images": [{"id": id_, "file_name": name, "height": 12, "width": 16} for id_, name in enumerate(names)],
                "categories": [{"id": 1, "name": "thing"}],
                "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]]}],
            }
            (root / f"{split}.json").write_text(json.dumps(content))
        how = {"train": "train.json", "val": "val.json"}, {"train": "train", "val": "val"}
        return CocoDataModule(str(root), *how, img_size=16, **SMALL)


class Labels(Layout):
    def open(self, root):
        for split in ("train", "val"):
            rows = [f"{split}/{path.name},1,0" for path in self.images(root, split)]
            (root / f"{split}.csv").write_text("\n".join(["path,x,y", *rows]))
        return MultiLabelCsvDataModule(str(root), img_size=16, **SMALL)


class Classes(Layout):
    def place(self, root, split, name):
        return root / split / "cat" / f"{name}.png"

    def open(self, root):
        return ImageFolderDataModule(str(root), img_size=16, **SMALL)


class TimmClasses(Classes):
    def open(self, root):
        how = {"train": {"split": "train"}, "val": {"split": "validation"}}
        return NamedDataModule("timm/", str(root), class_names=["cat"], img_size=16, splits=how, **SMALL)


LAYOUTS = [Folders(), Lists(), OneList(), Coco(), Labels(), Classes(), TimmClasses()]
EACH = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: type(layout).__name__)
UNCLOSED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # timm leaves files open


def fill(layout: Layout, root: Path) -> Path:
    for split, names in {"train": "abc", "val": "de"}.items():
        for name in names:
            save(layout.place(root, split, name))
            layout.target(root, split, name)
    return root


@UNCLOSED
@EACH
@pytest.mark.parametrize("put", [shutil.copy, os.symlink, os.link], ids=["copy", "link", "hard link"])
def test_an_image_in_two_splits_is_refused(tmp_path, layout, put):
    layout.open(fill(layout, tmp_path))
    put(layout.place(tmp_path, "train", "b"), layout.place(tmp_path, "val", "z"))
    layout.target(tmp_path, "val", "z")
    with pytest.raises(ValueError, match=r"same image in train \('.*b\.png'\) and val \('.*z\.png'\)"):
        layout.open(tmp_path)


@UNCLOSED
@EACH
@pytest.mark.parametrize("stray", STRAYS)
def test_strays_are_nobodys(tmp_path, layout, stray):
    fill(layout, tmp_path)
    folder = layout.place(tmp_path, "train", "a").parent
    places = [folder] if stray.startswith("sub/") else [folder, folder.parent]  # a folder of strays would be a class
    for path in (place / stray for place in places):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\0\5\x16\7")
    if isinstance(layout, (Folders, Classes)):  # the others read what they are told
        data = layout.open(tmp_path)
        assert len(data.dataset("train")) == 3
        assert data.class_names in (["a", "b"], ["cat"])


def test_one_list_keeps_the_lines_of_an_image_together(tmp_path):
    for name in "abcde":
        save(tmp_path / f"{name}.png")
        save_mask(tmp_path / f"{name}_mask.png")
    rows = [f"{name}.png,{mask}_mask.png" for name in "abcde" for mask in "ab"]
    (tmp_path / "all.csv").write_text("\n".join(["image,mask", *rows]))
    for seed in range(10):
        how = {"img_size": 16, "val_share": 0.4, "seed": seed, **SMALL}
        data = SegmentationDataModule(str(tmp_path / "all.csv"), ["a", "b"], **how)
        images = [{pair.image for pair in data.dataset(split).pairs} for split in ("train", "val")]
        assert not images[0] & images[1] and len(images[0] | images[1]) == 5


@pytest.mark.parametrize("split", ["source", "block"])
def test_windows_of_one_image_under_two_names(tmp_path, split):
    for name in "abcd":
        save(tmp_path / f"images/{name}.png", (64, 64))
        save_mask(tmp_path / f"masks/sub/{name}.png", (64, 64))
    (tmp_path / "images/sub").mkdir()
    for name in "abcd":
        (tmp_path / f"images/{name}.png").rename(tmp_path / f"images/sub/{name}.png")
    shutil.copy(tmp_path / "images/sub/a.png", tmp_path / "images/again.png")
    save_mask(tmp_path / "masks/again.png", (64, 64))
    assert len(find_pairs(tmp_path)) == 5
    for seed in range(6):
        how = {"size": 16, "shares": {"train": 1, "val": 1}, "block": 32, "seed": seed, "train_length": 2, **SMALL}
        if split == "block":
            with pytest.raises(ValueError, match=r"an image once, got .*again\.png.*a\.png"):
                WindowDataModule(str(tmp_path), split=split, **how)
            continue
        data = WindowDataModule(str(tmp_path), split=split, **how)
        owner = {source: name for name in ("train", "val") for source, _ in data.dataset(name).regions}
        assert owner[0] == owner[1]  # "again" and "sub/a"


def test_ids_of_coco_images_in_two_splits(tmp_path):
    layout = Coco()
    layout.open(fill(layout, tmp_path))  # both files count from 0: no sign of one image
    content = json.loads((tmp_path / "val.json").read_text())
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = "2"
    content["images"][1]["id"] = 9
    (tmp_path / "val.json").write_text(json.dumps(content))
    how = {"train": "train.json", "val": "val.json"}, {"train": "train", "val": "val"}
    with pytest.raises(ValueError, match=r"image id 2 in train \('.*train\.json'\) and val \('.*val\.json'\)"):
        CocoDataModule(str(tmp_path), *how, img_size=16, **SMALL)


def test_splits_opened_alike(tmp_path):
    how = {"size": 8, "image_size": (3, 8, 8), "num_classes": 2}
    with pytest.raises(ValueError, match="train and val opened alike"):
        NamedDataModule("torchvision/FakeData", arguments=how, splits={"train": {}, "val": {}}, img_size=8, **SMALL)


def test_pathfinder_images_named_twice(tmp_path):
    save(tmp_path / "imgs/0/sample_0.png", (32, 32))
    (tmp_path / "metadata").mkdir()
    for number in range(2):
        (tmp_path / f"metadata/{number}.npy").write_text("imgs/0 sample_0.png 0 1 1 1 1 1 1 1 1\n")
    with pytest.raises(ValueError, match=r"sample_0\.png in .*0\.npy and .*1\.npy"):
        LRAPathfinderDataModule(str(tmp_path), **SMALL)


@pytest.mark.parametrize("layout", [Folders(), Classes()], ids=["Folders", "Classes"])
def test_unicode_forms_of_one_name_match(tmp_path, layout):
    """Masks from a Mac, images from Windows; class folders likewise."""
    composed, split_up = (unicodedata.normalize(form, "für") for form in ("NFC", "NFD"))
    fill(layout, tmp_path)
    if isinstance(layout, Folders):
        save(layout.place(tmp_path, "train", composed))
        layout.target(tmp_path, "train", split_up)
        assert len(layout.open(tmp_path).dataset("train")) == 4
        return
    for split, form in {"train": composed, "val": split_up}.items():
        (tmp_path / split / "cat").rename(tmp_path / split / form)
    assert layout.open(tmp_path).class_names == [composed]


def test_lists_in_another_unicode_form_and_with_other_bytes(tmp_path):
    composed, split_up = (unicodedata.normalize(form, "für") for form in ("NFC", "NFD"))
    latin = os.fsdecode(b"stra\xdfe")
    for name in ("a", split_up, latin):
        Image.fromarray(RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png", "PNG")
    rows = "path,x,y\na.png,1,0\n" + f"{composed}.png,0,1\n"
    (tmp_path / "all.csv").write_bytes(rows.encode() + b"stra\xdfe.png,1,1\n")
    data = MultiLabelCsvDataModule(str(tmp_path / "all.csv"), img_size=16, **SMALL)
    assert len(data.dataset("train")) + len(data.dataset("val")) == 3
