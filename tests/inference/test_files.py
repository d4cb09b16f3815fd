from __future__ import annotations

import json
import os

import pytest

from castvision.inference.files import OutputFolder, find_images, match_masks
from tests.data.reading.test_folders import FORMS, STRAYS


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_folders_are_walked_in_order_with_numbers_as_numbers(tmp_path):
    touch(
        *(tmp_path / name for name in ("b/im_10.png", "b/im_9.PNG", "a.jpg", "notes.txt", ".hidden/x.png", "b/.x.png"))
    )
    found = find_images([tmp_path])
    assert list(found.values()) == ["a", "b/im_9", "b/im_10"]
    assert [path.name for path in found] == ["a.jpg", "im_9.PNG", "im_10.png"]


def test_a_named_file_is_taken_whatever_its_name(tmp_path):
    touch(tmp_path / "scan.dat")
    assert find_images([tmp_path / "scan.dat"]) == {tmp_path / "scan.dat": "scan"}


def test_names_are_unique_and_files_are_taken_once(tmp_path):
    touch(*(tmp_path / name for name in ("one/x.png", "one/x.jpg", "two/x.png", "two/X.png")))
    found = find_images([tmp_path / "one", tmp_path / "two", tmp_path / "one" / "x.png"])
    assert list(found.values()) == ["x", "x_png", "X_png-2", "x_png-3"] or len(set(found.values())) == 4
    assert len({name.casefold() for name in found.values()}) == len(found) == 4


def test_the_output_inside_a_source_is_left_out(tmp_path):
    touch(tmp_path / "a.png", tmp_path / "out/a/clusters.png")
    assert list(find_images([tmp_path], outside=tmp_path / "out").values()) == ["a"]


def test_nothing_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        find_images([tmp_path / "gone.png"])
    with pytest.raises(ValueError, match=r"no image \(.*\.png"):
        find_images([tmp_path])


def test_an_output_with_content_is_refused(tmp_path):
    touch(tmp_path / "out/mine.txt")
    with pytest.raises(FileExistsError, match="--overwrite"):
        OutputFolder(tmp_path / "out")
    touch(tmp_path / "file")
    with pytest.raises(NotADirectoryError, match="file"):
        OutputFolder(tmp_path / "file")


def test_writing_and_writing_again_in_one_run(tmp_path):
    output = OutputFolder(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert output.write("a/b.png", b"1").read_bytes() == b"1"
    assert output.write("a/b.png", b"2").read_bytes() == b"2"
    assert [path.name for path in (tmp_path / "out/a").iterdir()] == ["b.png"]


def test_a_strangers_file_is_not_replaced(tmp_path):
    output = OutputFolder(tmp_path / "out")
    touch(tmp_path / "out/late.png")
    with pytest.raises(FileExistsError, match="did not write"):
        output.write("late.png", b"1")
    assert (tmp_path / "out/late.png").read_bytes() == b"x"


def test_overwrite_replaces_same_names_only_and_never_an_input(tmp_path):
    touch(tmp_path / "out/a.png", tmp_path / "out/b.png", tmp_path / "out/input.png")
    output = OutputFolder(tmp_path / "out", overwrite=True, protected=[tmp_path / "out/input.png"])
    output.write("a.png", b"new")
    assert (tmp_path / "out/b.png").read_bytes() == b"x"
    with pytest.raises(FileExistsError, match="input"):
        output.write("input.png", b"new")
    assert (tmp_path / "out/input.png").read_bytes() == b"x"


def test_a_failed_write_leaves_nothing(tmp_path):
    output = OutputFolder(tmp_path / "out")
    with pytest.raises(TypeError):
        output.write("a.png", "not bytes")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("stray", STRAYS)
def test_strays_in_folders_are_no_images(tmp_path, stray):
    touch(tmp_path / "1.png", tmp_path / stray)
    assert list(find_images([tmp_path]).values()) == ["1"]
    assert match_masks(tmp_path, {tmp_path / "a/1.tif": "1"}) == {tmp_path / "a/1.tif": tmp_path / "1.png"}


def test_links_are_followed_and_broken_ones_listed(tmp_path):
    touch(tmp_path / "there/sub/1.png", tmp_path / "here/2.png")
    (tmp_path / "here/linked").symlink_to(tmp_path / "there")
    (tmp_path / "here/3.png").symlink_to(tmp_path / "nowhere.png")
    assert list(find_images([tmp_path / "here"]).values()) == ["2", "3", "linked/sub/1"]


@pytest.mark.parametrize("length", [100, 246, 251, 255])
def test_results_of_long_names_have_names_that_can_be_written(tmp_path, length):
    names = [f"{'ü' * ((length - 6) // 2)}{end}.png" for end in "ab"]
    touch(*(tmp_path / "in" / name for name in names))
    found = find_images([tmp_path / "in"])
    assert len(set(found.values())) == 2
    for path, name in found.items():
        assert (name == path.stem) == (len(os.fsencode(path.stem)) <= 247)
        touch(tmp_path / f"out/{name}.geojson")
    assert match_masks(tmp_path / "in", found) == {path: path for path in found}


def test_masks_match_in_any_unicode_form_and_by_folder(tmp_path):
    touch(tmp_path / f"images/{FORMS[0]}.png", tmp_path / f"masks/{FORMS[1]}.ome.tif", tmp_path / "masks/1.png")
    images = find_images([tmp_path / "images"])
    assert list(match_masks(tmp_path / "masks", images).values()) == [tmp_path / f"masks/{FORMS[1]}.ome.tif"]


def test_two_images_of_one_name_never_share_a_mask(tmp_path):
    touch(*(tmp_path / name for name in ("one/1.png", "one/1.jpg", "two/1.png", "masks/1.png")))
    for sources in (["one"], ["one/1.png", "two/1.png"]):
        with pytest.raises(ValueError, match=r"expected one mask for each image, got 2 image\(s\) called '1'"):
            match_masks(tmp_path / "masks", find_images([tmp_path / source for source in sources]))
    touch(tmp_path / "masks/1.jpg")
    matched = match_masks(tmp_path / "masks", find_images([tmp_path / "one"]))
    assert {image.name: mask.name for image, mask in matched.items()} == {"1.png": "1.png", "1.jpg": "1.jpg"}


def test_texts_with_names_of_any_bytes_are_written(tmp_path):
    name = os.fsdecode(b"stra\xdfe")
    path = OutputFolder(tmp_path / "out").write_text("a.json", json.dumps({"image": name, "ü": 1}, ensure_ascii=False))
    assert path.read_bytes().decode() == '{"image": "stra\\udcdfe", "ü": 1}'
    assert json.loads(path.read_text())["image"] == name


@pytest.mark.parametrize("ending", [".jp2", ".vrt", ".img", ".svs"])
def test_masks_of_every_kind_that_windows_are_trained_with(tmp_path, ending):
    (tmp_path / "masks").mkdir()
    mask = tmp_path / f"masks/1{ending}"
    mask.touch()
    assert match_masks(tmp_path / "masks", {tmp_path / "a/1.tif": "1"}) == {tmp_path / "a/1.tif": mask}
