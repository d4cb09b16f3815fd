from __future__ import annotations

import pytest

from castvision.files import draft, part_of


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with draft(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), draft(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_system_names_the_file(tmp_path):
    with pytest.raises(OSError, match=r"cannot write: No space left on device.*a\.txt'"), draft(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("length", [100, 190, 199, 240, 255])
def test_names_as_long_as_the_file_system_allows(tmp_path, length):
    path = tmp_path / f"{'x' * (length - 4)}.txt"
    with draft(path) as temporary:
        temporary.write_text("whole")
        assert temporary.name.startswith(".") and temporary.name.endswith(".part") and len(temporary.name) <= 200
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_its_place_as_a_file_does(tmp_path):
    path = tmp_path / "a.zarr"
    for content in ("old", "new"):
        with draft(path) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert [file.name for file in path.iterdir()] == ["new"]
    with pytest.raises(KeyboardInterrupt), draft(path) as temporary:
        temporary.mkdir()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    left = part_of(tmp_path / "a")
    left.mkdir()
    (left / "half").touch()
    with draft(tmp_path / "a") as temporary:
        assert not temporary.exists()
        temporary.touch()
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]
