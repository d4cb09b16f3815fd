from __future__ import annotations

import json

import pytest

from benchmarks.fidelity.main import Rows, main
from benchmarks.fidelity.photographs import find_photographs, grid_for
from benchmarks.fidelity.report import draw, frontier, make_tables, summarize


def _row(setting: str, unexplained: float, attention: float, image: str = "a") -> dict[str, object]:
    return {
        "model": "m", "size": 518, "image": image, "setting": setting, "unexplained": unexplained, "shift": 0.5,
        "cosine": 0.9, "class_cosine": None, "seconds": 2.0, "attention_seconds": attention, "peak_bytes": 1 << 20,
    }  # fmt: skip


ROWS = [
    _row("full attention", 0, 8.0), _row("fast", 0.5, 1.0), _row("worse", 0.6, 2.0), _row("near", 0.1, 4.0),
    _row("full attention", 0, 4.0, "b"), _row("fast", 0.3, 1.0, "b"), _row("fast", 0.3, 1.0, "c"),
]  # fmt: skip


def test_means_are_over_images_that_full_attention_saw_and_the_frontier_is_what_none_beats():
    ((key, summaries),) = summarize(ROWS).items()
    assert key == ("m", 518)
    fast = next(each for each in summaries if each.setting == "fast")
    assert (fast.images, fast.unexplained, fast.worst, fast.attention) == (2, pytest.approx(0.4), 0.5, 6.0)
    assert [each.setting for each in frontier(summaries)] == ["fast", "near", "full attention"]


def test_table_and_picture(tmp_path):
    lines = make_tables(ROWS).splitlines()
    assert lines[0].startswith("| m, 518 px | images | unexplained")
    assert "| **near** | 1 | 0.100 | 0.100 | 50% | 0.9000 | nan | 2 s | 2.00 times faster | 1 MiB |" in lines
    draw(tmp_path / "a.png", ROWS, "processor")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_kept_and_found_again_and_other_files_refused(tmp_path):
    path = tmp_path / "fidelity.json"
    Rows(path).add(_row("near", 0.1, 4.0))
    again = Rows(path)
    assert again.has(_row("near", 9.0, 9.0))
    assert not again.has(_row("near", 0.1, 4.0, "b"))
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"machine": {"cpu": "another"}}))
    with pytest.raises(ValueError, match="another processor, another"):
        Rows(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="something else"):
        Rows(path)


def test_an_image_keeps_its_shape_and_is_not_enlarged():
    assert grid_for(2560, 1600, 1022, 14) == (58, 92)
    assert grid_for(1022, 1022, 1022, 14) == (73, 73)
    assert grid_for(900, 900, 1022, 14) is None


def test_a_folder_without_images_and_wrong_arguments_are_one_line(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match="expected a folder with images"):
        find_photographs(tmp_path)
    assert main(["--sizes", "0"]) == 2
    assert main(["--settings", "nearly"]) == 2
    assert main(["--weights", str(tmp_path / "no.onnx"), "--output", str(tmp_path)]) == 1
    assert main(["--report", "--output", str(tmp_path)]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["benchmark fidelity"] * 4
