from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from castvision.data.datasets.segmentation import Pair, SegmentationDataset, find_pairs, match_folders
from castvision.data.reading.labels import LabelMap
from tests.data.conftest import write_bad_images


def write_pair(image: Path, mask: Path, label: int = 1, size=(8, 6)) -> None:
    for path, mode, value in ((image, "RGB", (label, 2, 3)), (mask, "L", label)):
        path.parent.mkdir(parents=True, exist_ok=True)
        about = PngInfo()
        about.add_text("name", path.name)  # or all images would be the same file
        Image.new(mode, size, value).save(
            path, **({"pnginfo": about} if path.suffix == ".png" else {"comment": path.name})
        )


@pytest.mark.parametrize(("images", "masks"), [("{}/images", "{}/masks"), ("images/{}", "masks/{}")])
def test_folders_with_splits(tmp_path, images, masks):
    for split, names in {"train": ["b", "a", "sub/c"], "val": ["d"], "test": ["e"]}.items():
        for name in names:
            write_pair(tmp_path / images.format(split) / f"{name}.jpg", tmp_path / masks.format(split) / f"{name}.png")
    found = find_pairs(tmp_path)
    assert {split: [pair.image.stem for pair in pairs] for split, pairs in found.items()} == {
        "train": ["a", "b", "c"],
        "val": ["d"],
        "test": ["e"],
    }
    assert found["train"][2].mask == tmp_path / masks.format("train") / "sub/c.png"


def test_folders_without_splits_hold_some_out(tmp_path):
    for number in range(10):
        write_pair(tmp_path / f"images/{number}.png", tmp_path / f"masks/{number}.png")
    found = find_pairs(tmp_path, val_share=0.2, seed=3)
    assert {split: len(pairs) for split, pairs in found.items()} == {"train": 8, "val": 2}
    assert found == find_pairs(tmp_path, val_share=0.2, seed=3)
    assert not set(found["train"]) & set(found["val"])


def test_lists(tmp_path):
    for name in "abcd":
        write_pair(tmp_path / f"{name}.png", tmp_path / f"m/{name}.png")
    (tmp_path / "train.csv").write_text("image,mask\na.png,m/a.png\nb.png, m/b.png\n")
    (tmp_path / "val.csv").write_text(f"image,mask\n{tmp_path / 'c.png'},m/c.png\n")
    assert [pair.mask.name for pair in find_pairs(tmp_path)["train"]] == ["a.png", "b.png"]
    one = tmp_path / "all.csv"
    one.write_text("image,mask,split\na.png,m/a.png,train\nb.png,m/b.png,val\nc.png,m/c.png,test\n")
    assert {split: len(pairs) for split, pairs in find_pairs(one).items()} == {"train": 1, "val": 1, "test": 1}
    one.write_text("image,mask\na.png,m/a.png\nb.png,m/b.png\nc.png,m/c.png\n")
    assert {split: len(pairs) for split, pairs in find_pairs(one, val_share=0.3).items()} == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: expected the columns image, mask, got none"),
        ("image,label\na.png,b.png\n", "line 1: expected the columns image, mask, got image, label"),
        ("image,mask\na.png,a.png\nb.png\n", r"all\.csv, line 3: expected 2 values"),
        ("image,mask\na.png,\n", r"all\.csv, line 2: expected a value in the column 'mask'"),
        ("image,mask,split\na.png,a.png,tran\n", "line 2: expected a split train, val or test, got 'tran'"),
        ("image,mask\n", "expected lines below the header"),
        ("image,mask,split\na.png,a.png,train\na.png,a.png,\n", "a split on every line"),
    ],
)
def test_wrong_lists_are_named_with_the_line(tmp_path, text, message):
    (tmp_path / "all.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        find_pairs(tmp_path / "all.csv")


def test_a_list_that_is_no_text(tmp_path):
    (tmp_path / "all.csv").write_bytes(b"image,mask\n\xff\xfe,b\n")
    with pytest.raises(ValueError, match="expected text"):
        find_pairs(tmp_path / "all.csv")


def test_lonely_and_doubled_files(tmp_path):
    for name in "ab":
        write_pair(tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}.png")
    (tmp_path / "masks/b.png").unlink()
    with pytest.raises(ValueError, match=r"images/b\.png' has no mask 'b'"):
        match_folders(tmp_path / "images", tmp_path / "masks")
    (tmp_path / "images/b.png").unlink()
    Image.new("L", (4, 4)).save(tmp_path / "masks/z.png")
    with pytest.raises(ValueError, match=r"masks/z\.png' has no image 'z'"):
        match_folders(tmp_path / "images", tmp_path / "masks")
    Image.new("L", (4, 4)).save(tmp_path / "images/a.jpg")
    with pytest.raises(ValueError, match=r"expected one file of a name"):
        match_folders(tmp_path / "images", tmp_path / "masks")


def test_missing_places(tmp_path):
    for root in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match="ROOT/images"):
            find_pairs(root)
    write_pair(tmp_path / "train/images/a.png", tmp_path / "train/masks/a.png")
    with pytest.raises(FileNotFoundError, match="no images for 'val'"):
        find_pairs(tmp_path)
    (tmp_path / "all.csv").write_text("image,mask,split\ntrain/images/a.png,gone.png,train\ntrain/images/a.png,a,val\n")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        find_pairs(tmp_path / "all.csv")


def test_items(tmp_path):
    write_pair(tmp_path / "a.png", tmp_path / "m.png", label=2)
    data = SegmentationDataset([Pair(tmp_path / "a.png", tmp_path / "m.png")], LabelMap(["x", "y", "z"]))
    image, mask = data[0]
    assert (image.dtype, image.shape, mask.dtype, mask.shape) == (torch.float32, (3, 6, 8), torch.int64, (6, 8))
    assert image[0, 0, 0] == np.float32(2) / 255
    assert mask.unique().tolist() == [2]
    assert data.name(0).endswith("a.png")


def test_bad_files_are_named(tmp_path):
    write_pair(tmp_path / "a.png", tmp_path / "m.png", label=1)
    good = Pair(tmp_path / "a.png", tmp_path / "m.png")
    labels = LabelMap(["x", "y"])
    for name, message in write_bad_images(tmp_path).items():
        with pytest.raises(ValueError, match=message):
            SegmentationDataset([Pair(tmp_path / name, good.mask)], labels)[0]
    for name in ("truncated.jpg", "empty.png", "text.png"):
        with pytest.raises(ValueError, match=name):
            SegmentationDataset([Pair(good.image, tmp_path / name)], labels)[0]
    Image.new("L", (6, 8)).save(tmp_path / "turned.png")
    with pytest.raises(ValueError, match=r"a\.png' with 6 × 8 .* turned\.png' with 8 × 6|.*turned\.png"):
        SegmentationDataset([Pair(good.image, tmp_path / "turned.png")], labels)[0]
    Image.new("L", (8, 6), 9).save(tmp_path / "unknown.png")
    with pytest.raises(ValueError, match=r"unknown\.png' for 2 classes, got 9"):
        SegmentationDataset([Pair(good.image, tmp_path / "unknown.png")], labels)[0]
