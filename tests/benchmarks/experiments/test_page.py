"""The page is a function of committed JSON."""

from __future__ import annotations

from benchmarks.experiments.page import make_page, render
from castvision_cli.train import config_folder
from tests.benchmarks.experiments.small import load_small, write_results, write_row

ROOT = config_folder().parent


def test_the_committed_page_is_what_the_committed_rows_give():
    """Changed by hand, or rows without their page: `python tools/experiment.py render` mends both."""
    page = (ROOT / "results/README.md").read_text(encoding="utf-8")
    assert page == make_page(ROOT / "results")
    for line in page.splitlines():
        if line.startswith("!["):
            assert (ROOT / "results" / line.partition("(")[2].rstrip(")")).is_file(), line


def test_a_page_says_what_was_found_what_is_missing_and_what_is_not_finished(tmp_path):
    experiment, rows = load_small(write_results(tmp_path))
    for run in experiment.runs()[:3]:
        write_row(rows, run, 0.5 if run.setting == "two heads" else 0.25)
    stopped = experiment.runs()[4]
    write_row(rows, stopped, 0.4, finished=False, metrics=None)
    page = render(tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text == make_page(tmp_path)
    assert "| small, iou_way at equal images | +0.250, one seed |" in text
    assert "| small | 5 of 8 |" in text
    assert "| small/two_heads-images-1 | 48 | 0.00 | 0.400 |" in text
    assert "| some CPU, AVX2; CPU, 1 thread(s) | torch 2, timm 1 | 3 |" in text
    assert (tmp_path / "figures/small.png").read_bytes().startswith(b"\x89PNG")


def test_without_rows_a_page_names_the_command(tmp_path):
    render(write_results(tmp_path))
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "No run yet: `python tools/experiment.py run small`" in text
    assert not (tmp_path / "figures").exists()
