"""Data are refused early only where the data module would refuse them; see test_contents.py for what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from castvision_cli.early.data import check_data


def _pairs(root, count, labels):
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number in range(count):
            pixels = np.full((8, 8, 3), number, np.uint8)
            pixels[0, 0] = len(split)
            Image.fromarray(pixels).save(root / split / f"images/{number:03}.png")
            Image.fromarray(np.resize(np.uint8(labels), (8, 8))).save(root / split / f"masks/{number:03}.png")


def _config(name="SegmentationDataModule", **init):
    return [{"data": {"class_path": name, "init_args": init}}]


def test_of_many_images_the_first_say_nothing_of_the_classes_of_all(tmp_path):
    """Only the last mask has the second class; of a few images all are read."""
    _pairs(tmp_path / "many", 40, [0, 255])
    _pairs(tmp_path / "few", 4, [0, 255])
    for root, number in (("many", 39), ("few", 3)):
        Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / root / f"val/masks/{number:03}.png")
    check_data([], _config(root=str(tmp_path / "many")))
    with pytest.raises(ValueError, match="expected two classes or more in the training masks"):
        check_data([], _config(root=str(tmp_path / "few")))
    Image.fromarray(np.ones((8, 8), np.uint8)).save(tmp_path / "few/train/masks/003.png")
    check_data([], _config(root=str(tmp_path / "few")))


def test_flags_win_over_configurations_and_later_over_earlier(tmp_path):
    _pairs(tmp_path / "good", 2, [0, 1])
    _pairs(tmp_path / "bad", 2, [0, 1])
    (tmp_path / "bad/train/masks/001.png").unlink()
    good, bad = str(tmp_path / "good"), str(tmp_path / "bad")
    check_data(["--data.root", good], _config(root=bad))
    check_data([], [*_config(root=bad), {"data": {"init_args": {"root": good}}}])
    for words, contents in (
        ([f"--data.root={bad}"], _config(root=good)),
        ([f"--data.init_args.root={bad}"], _config(root=good)),
        (["--data", "SegmentationDataModule", "--data.root", bad], []),
        ([], _config("castvision.training.SegmentationDataModule", root=bad)),
    ):
        with pytest.raises(ValueError, match="has no mask '001'"):
            check_data(words, contents)
    with pytest.raises(ValueError, match=r"expected bands within 1\.\.3"):
        check_data(["--data.pixels.bands", "[4]"], _config(root=good))
    with pytest.raises(ValueError, match=r"expected bands within 1\.\.3"):
        check_data([], _config(root=good, pixels={"bands": [4]}))


def test_what_others_see_to_is_let_through(tmp_path, monkeypatch):
    """Classes of others, arguments of another type, names that YAML took for truth values, and large data."""
    _pairs(tmp_path, 2, [0, 1])
    (tmp_path / "train/masks/001.png").unlink()
    root = str(tmp_path)
    check_data([], [])
    check_data([], _config("mine.SegmentationDataModule", root=root))
    check_data([], _config(root=root, class_names=[False, True]))
    check_data([], _config(root=3))
    check_data([], _config("CocoDataModule", root=root, annotations="train.json"))
    check_data([], _config("WindowDataModule", root=root, vector={"path": "a.geojson", "attribute": "use"}))
    monkeypatch.setattr("castvision_cli.early.data._MOST_FILES", 3)
    check_data([], _config(root=root))
