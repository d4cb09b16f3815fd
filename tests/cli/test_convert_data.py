from __future__ import annotations

import pytest

import castvision_cli as cli
from castvision_cli import train
from tests.data.annotations.test_converting import POLYGON, SQUARE, cvat, drawn, labelme, on, picture

SMALL = ["--data.num_workers", "0", "--data.batch_size", "2", "--data.img_size", "32", "--trainer.max_steps", "1"]
SMALL += [
    "--model.model_kwargs",
    "{img_size: 32, depth: 1, embed_dim: 32, num_heads: 2}",
    "--trainer.accelerator",
    "cpu",
]


def convert(*arguments) -> int:
    return cli.main(["data", "convert", *map(str, arguments)])


def test_the_printed_command_trains(tmp_path, capsys):
    for number in range(4):
        picture(tmp_path / f"in/{'a' * (number + 1)}.jpg")
        labelme(tmp_path / f"in/{'a' * (number + 1)}.json", SQUARE, drawn("house", "line", (0, 0), (1, 1)),
                drawn("house", "polygon", (0, 0), (1, 1), (2, 2)))  # fmt: skip
    assert convert(tmp_path / "in", "--output", tmp_path / "out") == 0
    told = capsys.readouterr().out
    for line in ("4 masks in", "house: 4 shapes", "no pixel of the image inside: 4 × house", "4 × line (no area)"):
        assert line in told
    words = told.splitlines()[-1].replace("'", "").split()
    start, end = words.index("--data.class_names"), words.index("--model.num_classes")
    flags = [*words[2 : start + 1], " ".join(words[start + 1 : end]), *words[end:]]
    assert train.main([*flags, *SMALL, "--run_dir", str(tmp_path / "run")]) == 0


def test_boxes_alone_are_named(tmp_path, capsys):
    picture(tmp_path / "a.png")
    file = cvat(tmp_path / "x.xml", on("a.png", '<box label="car" xtl="0" ytl="0" xbr="3" ybr="3"/>'))
    assert convert(file, "--output", tmp_path / "out") == 0
    assert "all shapes are rectangles" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "message"),
    [(POLYGON.replace("5.00,5.00;", "5.00;"), "shape 0 (polygon): expected 2 finite"), ("<cuboid/>", "'cuboid'")],
)
def test_errors_are_one_line_and_nothing_is_written(tmp_path, capsys, shape, message):
    picture(tmp_path / "a.png")
    shape = shape.replace("<cuboid/>", '<cuboid label="car"/>')
    assert convert(cvat(tmp_path / "x.xml", on("a.png", shape)), "--output", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert convert(tmp_path / "gone", "--output", tmp_path / "out") == 2
    assert cli.main(["data", "covert"]) == 2
    assert "expected show or convert" in capsys.readouterr().err
