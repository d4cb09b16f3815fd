from __future__ import annotations

import os
from pathlib import Path

import pytest

from castvision.data.datasets.leaks import check_apart, hold_out_images, same_images


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def paths(tmp_path):
    """One image by five names, one that differs in a byte in the middle of a stretch that is not sampled, another."""
    content = bytearray(100_000)
    one = write(tmp_path / "one.png", bytes(content))
    (tmp_path / "link.png").symlink_to(one)
    os.link(one, tmp_path / "hard.png")
    write(tmp_path / "copy.png", bytes(content))
    content[20_000] = 1
    write(tmp_path / "near.png", bytes(content))
    write(tmp_path / "other.png", b"other")
    names = ("one.png", "link.png", "near.png", "hard.png", "copy.png", "x/../one.png", "other.png", "missing.png")
    (tmp_path / "x").mkdir()
    return [tmp_path / name for name in names]


def test_one_image_under_all_its_names(paths):
    assert same_images(paths) == [0, 0, 2, 0, 0, 0, 6, 7]
    assert same_images(paths, contents=False) == [0, 0, 2, 0, 4, 0, 6, 7]


@pytest.mark.parametrize("name", ["one.png", "link.png", "hard.png", "copy.png", "x/../one.png"])
def test_an_image_in_two_splits_is_refused_and_both_are_named(paths, tmp_path, name):
    with pytest.raises(ValueError, match=r"in train \('.*one\.png'\) and val \('.*'\), 1 such image"):
        check_apart({"train": [paths[0]], "val": [tmp_path / "near.png", tmp_path / name]})
    check_apart({"train": [paths[0], tmp_path / name], "val": [tmp_path / "near.png", tmp_path / "other.png"]})


@pytest.mark.parametrize("seed", range(10))
def test_samples_of_one_image_are_held_out_together(paths, seed):
    chosen = dict(hold_out_images(paths[:7], 0.4, seed))
    images = same_images(paths[:7])
    assert not {images[index] for index in chosen["train"]} & {images[index] for index in chosen["val"]}
    assert sorted(chosen["train"] + chosen["val"]) == list(range(7))


def test_images_that_are_all_alike_are_split_by_name(tmp_path, caplog):
    paths = [write(tmp_path / f"{number}.png", b"black") for number in range(5)]
    assert [len(some) for _, some in hold_out_images(paths, 0.2, 0)] == [4, 1]
    assert "all 5 images are of the same content" in caplog.text


def test_a_split_of_exactly_the_same_files_is_a_dry_run_that_is_said(tmp_path, caplog):
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]))
    check_apart({"train": files, "val": files[::-1]})
    assert "val holds exactly the images of train" in caplog.text
    with pytest.raises(ValueError, match="the same image in train"):
        check_apart({"train": files, "val": files[:2]})
