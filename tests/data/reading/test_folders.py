"""Which files of a folder are images, wherever a folder is read."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import pytest

from castvision.data.reading.folders import (
    ALL_SUFFIXES,
    as_on_disk,
    images_by_name,
    is_stray,
    name_of,
    walk_images,
)

STRAYS = [
    "1.png.aux.xml", "1.tfw", "1.pgw", "1.tif.ovr", "1.tif.msk", "1.prj", "Thumbs.db", "desktop.ini", "DESKTOP.INI",
    ".DS_Store", "._1.png", ".1.png", "1.png~", "1.png.part", "notes.txt", "classes.txt",
    ".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/1.png", "@eaDir/1.png", "sub/.ipynb_checkpoints/1.png",
    "sub/._2.png",
]  # fmt: skip
"""What programs leave beside images."""


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.mark.parametrize("stray", STRAYS)
def test_what_programs_leave_is_no_image_and_nothing_is_said(tmp_path, stray, caplog):
    touch(tmp_path / "1.png", tmp_path / "sub/2.png", tmp_path / stray)
    for suffixes in (ALL_SUFFIXES, {".png"}):
        assert [path.name for path in walk_images(tmp_path, suffixes)] == ["1.png", "2.png"]
    assert not caplog.records


def test_a_hidden_place_of_the_whole_folder_hides_nothing(tmp_path):
    touch(tmp_path / ".cache/1.png")
    assert len(walk_images(tmp_path / ".cache")) == 1


def test_endings_of_folders_say_nothing():
    assert is_stray("v1.txt") and not is_stray("v1.txt", is_folder=True)
    assert is_stray(".x", is_folder=True) and is_stray("$RECYCLE.BIN", is_folder=True)


@pytest.mark.parametrize("ending", [".jfif", ".heic", ".npy", ".dcm", ".exr", ""])
def test_other_files_are_left_out_aloud(tmp_path, ending, caplog):
    touch(tmp_path / "1.png", tmp_path / f"2{ending}")
    with caplog.at_level(logging.WARNING):
        assert len(walk_images(tmp_path)) == 1
    assert f"left out 1 file(s) whose endings ({ending or 'none'})" in caplog.text
    assert f"2{ending}" in caplog.text


def test_links_are_followed_and_one_that_leads_nowhere_is_listed(tmp_path):
    touch(tmp_path / "elsewhere/sub/1.png", tmp_path / "root/2.png")
    (tmp_path / "root/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/3.png").symlink_to(tmp_path / "root/2.png")
    (tmp_path / "root/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "root/unmounted").symlink_to(tmp_path / "nowhere")
    names = [path.relative_to(tmp_path / "root").as_posix() for path in walk_images(tmp_path / "root")]
    assert names == ["2.png", "3.png", "gone.png", "linked/sub/1.png", "unmounted"]


def test_a_link_back_up_ends_the_walk_there(tmp_path, caplog):
    touch(tmp_path / "a/1.png")
    (tmp_path / "a/up").symlink_to(tmp_path)
    assert [path.name for path in walk_images(tmp_path)] == ["1.png"]
    assert "leads back to a folder above it" in caplog.text


def test_a_store_is_one_image_or_none(tmp_path):
    touch(tmp_path / "a.zarr/0/1.png", tmp_path / "b/zarr.json", tmp_path / "b/2.png")
    assert [path.name for path in walk_images(tmp_path, ALL_SUFFIXES)] == ["a.zarr", "b"]
    assert walk_images(tmp_path) == []


FORMS = [unicodedata.normalize(form, "für/Å1") for form in ("NFC", "NFD")]


@pytest.mark.parametrize("stored", FORMS)
@pytest.mark.parametrize("listed", FORMS)
def test_names_match_in_any_unicode_form(tmp_path, stored, listed):
    touch(tmp_path / f"{stored}.png")
    assert name_of(Path(f"{stored}.ome.tif")) == name_of(Path(f"{listed}.png")) == FORMS[0]
    assert list(images_by_name(tmp_path)) == [FORMS[0]]
    assert as_on_disk([tmp_path / f"{listed}.png"])[0].read_bytes() == b"x"
    missing = tmp_path / "für/none.png"
    assert as_on_disk([missing]) == [missing]


def test_two_files_of_one_name_are_refused_in_both_forms(tmp_path):
    touch(*(tmp_path / f"{form}.png" for form in FORMS))
    with pytest.raises(ValueError, match=r"expected one file of a name, got .*1\.png.*1\.png"):
        images_by_name(tmp_path)
