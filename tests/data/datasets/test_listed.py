"""Files outside the folder of the list that names them: refused by every door, unless the list is trusted."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

import castvision_cli as cli
from castvision.data.datasets.coco import read_coco
from castvision.data.datasets.listed import listed_files
from castvision.data.datasets.multilabel import read_label_table
from castvision.data.datasets.segmentation import find_pairs
from castvision_cli import train


@pytest.fixture
def root(tmp_path):
    """A folder with images and links, beside another with an image."""
    inside, outside = tmp_path / "data", tmp_path / "data-of-others"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    rng = np.random.default_rng(0)
    for path in (inside / "a.png", inside / "deep/b.png", outside / "x.png"):
        Image.fromarray(rng.integers(0, 2, (8, 8), np.uint8)).save(path)
    os.symlink(inside / "a.png", inside / "inner.png")
    os.symlink(outside / "x.png", inside / "outer.png")
    os.symlink(outside, inside / "folder")
    os.symlink("loop.png", inside / "loop.png")
    return inside


def inside_names(root):
    return ["a.png", "./deep/../a.png", "../data/deep/b.png", "inner.png", str(root / "a.png"), "missing.png"]


OUTSIDE = [
    "../data-of-others/x.png",
    "outer.png",
    "folder/x.png",
    "{absolute}",
    "..",
    "deep/../../data-of-others/none.png",
]


def test_it_counts_where_a_file_lies_in_the_end(root, tmp_path):
    names = inside_names(root)
    found = listed_files(root, names, ["line"] * len(names), [root])
    assert [os.path.normpath(path) for path in found[:2]] == [str(root / "a.png")] * 2
    os.symlink(root, tmp_path / "link")  # the folder itself may be one
    assert len(listed_files(tmp_path / "link", names, ["line"] * len(names), [tmp_path / "link"])) == len(names)


def test_backslashes_of_windows(root):
    assert listed_files(root, ["deep\\b.png", "a.png"], ["line"] * 2, [root]) == [root / "deep/b.png", root / "a.png"]
    (root / "x\\y.png").write_bytes(b"x")
    assert listed_files(root, ["x\\y.png"], ["line"], [root]) == [root / "x\\y.png"]
    with pytest.raises(ValueError, match="line 7: expected a file in"):
        listed_files(root, ["..\\data-of-others\\x.png"], ["line 7"], [root])


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_is_refused_with_the_way_out(root, name):
    name = name.format(absolute=root.parent / "data-of-others/x.png")
    with pytest.raises(ValueError, match=r"line 7: expected a file in '.*data' .*--data\.allow_outside_root true"):
        listed_files(root, ["a.png", name], ["line 6", "line 7"], [root])
    assert listed_files(root, [name], ["line"], None) == [root / name]


def write_lists(root, name):
    (root / "pairs.csv").write_text(f"image,mask\na.png,a.png\ndeep/b.png,{name}\n")
    (root / "labels.csv").write_text(f"path,labels\na.png,cat\n{name},dog\n")
    images = [{"id": 1, "file_name": name, "height": 8, "width": 8}]
    coco = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (root / "coco.json").write_text(json.dumps(coco))


def test_every_kind_of_list(root):
    write_lists(root, "../data-of-others/x.png")
    with pytest.raises(ValueError, match=r"pairs\.csv, line 3: expected a file in '.*data'"):
        find_pairs(root / "pairs.csv")
    with pytest.raises(ValueError, match=r"labels\.csv, line 3: expected a file in '.*data'"):
        read_label_table(root / "labels.csv")
    with pytest.raises(ValueError, match=r"coco\.json, image 1: expected a file in '.*data'"):
        read_coco(root / "coco.json")
    assert len(find_pairs(root / "pairs.csv", allow_outside_root=True)["train"]) == 1
    assert read_label_table(root / "labels.csv", allow_outside_root=True).class_names == ["cat", "dog"]
    assert len(read_coco(root / "coco.json", allow_outside_root=True).images) == 1
    assert len(read_coco(root / "coco.json", root=root.parent).images) == 1  # as a configuration's root


@pytest.mark.parametrize(("config", "name"), [("segmentation_folder", "pairs.csv"), ("multilabel_csv", "labels.csv")])
def test_the_commands_refuse_in_one_line_and_take_the_flag(root, tmp_path, capsys, config, name):
    write_lists(root, "../data-of-others/x.png")
    how = ["--config", config, "--data.root", str(root / name), "--data.img_size", "32", "--data.num_workers", "0"]
    sheet = tmp_path / "sheet.png"
    assert cli.main(["data", "show", *how, "--output", str(sheet)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "--data.allow_outside_root true" in told and not sheet.exists()
    assert cli.main(["data", "show", *how, "--output", str(sheet), "--data.allow_outside_root", "true"]) == 0
    capsys.readouterr()
    assert train.main([*how, "--run_dir", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "--data.allow_outside_root true" in told and not (tmp_path / "run").exists()
