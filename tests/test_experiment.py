"""The command line of tools/experiment.py."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import pytest

from tests.benchmarks.experiments.small import load_small, write_results, write_row

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("experiment", ROOT / "tools/experiment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("0", 0)])
def test_times(tool, text, seconds):
    assert tool.parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "2d", "-1", "inf", "nan"])
def test_no_times(tool, text):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 2h"):
        tool.parse_seconds(text)


def test_the_list_is_what_has_no_finished_row(tool, tmp_path, capsys):
    experiment, rows = load_small(write_results(tmp_path, seeds=[0]))
    first, second, third, _ = experiment.runs()
    write_row(rows, first, 0.5)
    write_row(rows, second, 0.5, finished=False)
    write_row(rows, third, 0.5, budget_seconds=99)
    assert tool.main(["run", "--list", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "small/one_head-images-0 (48 images so far)",
        "small/two_heads-seconds-0, has a row of another definition",
        "small/one_head-seconds-0",
    ]


def test_render_is_one_command(tool, tmp_path, capsys):
    assert tool.main(["render", "--results", str(write_results(tmp_path))]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "README.md")


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["run", "large"], "among small, got large"),
        (["render", "small"], "no experiments"),
        (["render", "--list"], "--list"),
    ],
)
def test_wrong_arguments_are_one_line(tool, tmp_path, capsys, words, match):
    assert tool.main([*words, "--results", str(write_results(tmp_path))]) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1


def test_without_results_one_line_says_what_is_expected(tool, tmp_path, capsys):
    assert tool.main(["run", "--results", str(tmp_path)]) == 2
    assert "expected experiments/*.yaml" in capsys.readouterr().err
