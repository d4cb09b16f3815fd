"""Speeds of the generators, by themselves; test_main runs them as a level of the benchmark."""

from __future__ import annotations

import json

import pytest

from benchmarks import generators
from benchmarks.generators import measure_dense, measure_pathfinder
from castvision.data.synthetic import MazeDataset


def test_pathfinder_images_are_counted() -> None:
    result = measure_pathfinder(32, 6, "clean", 4)
    assert result["images"] == 20 and result["slowest_repeat"] <= result["images_per_core_second"]
    with pytest.raises(ValueError, match="count"):
        measure_pathfinder(32, 6, "clean", 0)


def test_dense_images_are_counted() -> None:
    result = measure_dense("maze", MazeDataset(64), 3)
    assert result["images"] == 15 and result["generated_per_core_second"] > 0
    with pytest.raises(ValueError, match="count"):
        measure_dense("maze", MazeDataset(64), 0)


def test_report_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(generators._REPORTS, "dense", ("a task", lambda: [measure_dense("maze", MazeDataset(64), 2)]))
    assert generators.main(["dense", "--json", str(tmp_path / "speed.json")]) == 0
    report = json.loads((tmp_path / "speed.json").read_text())
    assert (report["what"], report["repeats"], report["results"][0]["img_size"]) == ("a task", 5, 64)
    assert {"cpu", "numba"} <= set(report["machine"])
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]
