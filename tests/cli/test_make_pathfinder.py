from __future__ import annotations

from pathlib import Path

import pytest

from castvision_cli.make_pathfinder import main


def test_writes_a_set_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "set"), "--contour-length", "6", "--num-images", "3", "--workers", "1"]
    assert main(arguments) == 0
    assert capsys.readouterr().out.endswith(f"3 images in {tmp_path / 'set'}\n")
    assert len(list((tmp_path / "set" / "imgs" / "0").glob("*.png"))) == 3
    assert main(arguments) == 2
    assert "castvision make-pathfinder: error: " in (error := capsys.readouterr().err) and "complete" in error


def test_wrong_numbers_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "set"), "--img-size", "8"]) == 2
    assert "img_size must be at least 24" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_folder_of_others_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    assert main([str(tmp_path), "--num-images", "2"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["precious.txt"]
