from __future__ import annotations

import json

import pytest

from benchmarks.record import Key, Measurement, Results, load_results, single_measurement

HEADER = {
    "machine": {"cpu": "a", "torch": "2"},
    "settings": {"sizes": (256, 1024), "threads": 1, "dtypes": ("fp32",)},
}
TIMED = Measurement(Key("layer", "cast", 256), 2.0, 1.5, 3.0, 5)
WORKED_OUT = single_measurement(Key("layer", "sdpa", 256), 6.0, "one head timed, times 6", repeats=0)


def test_figures_come_back_and_an_unfinished_run_goes_on(tmp_path):
    path = tmp_path / "new" / "benchmark.json"
    results = Results(path, HEADER)
    results.add([TIMED], {"layer cast at 256": "ValueError: none"})
    results.add([WORKED_OUT])
    again = Results(path, HEADER)
    assert again.measurements == {TIMED.key: TIMED, WORKED_OUT.key: WORKED_OUT}
    again.finish()
    read = load_results(path)
    assert (read.measurements, read.finished, read.header["machine"]) == (again.measurements, True, HEADER["machine"])
    assert [entry.name for entry in path.parent.iterdir()] == ["benchmark.json"]


def test_a_finished_run_and_one_of_other_settings_are_left_alone(tmp_path):
    path = tmp_path / "benchmark.json"
    results = Results(path, HEADER)
    results.add([TIMED])
    before = path.read_text()
    with pytest.raises(FileExistsError, match="other settings; choose another folder"):
        Results(path, {**HEADER, "settings": {"sizes": [512]}})
    assert path.read_text() == before
    results.finish()
    with pytest.raises(FileExistsError, match="a finished run"):
        Results(path, HEADER)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_a_file_of_something_else_is_named(tmp_path, text):
    path = tmp_path / "benchmark.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"benchmark\.json"):
        Results(path, HEADER)
    assert path.read_text() == text


def test_a_later_figure_replaces_an_earlier_one(tmp_path):
    results = Results(tmp_path / "benchmark.json", HEADER)
    results.add([TIMED])
    results.add([single_measurement(TIMED.key, 1.0)])
    content = json.loads((tmp_path / "benchmark.json").read_text())
    assert [figure["value"] for figure in content["figures"]] == [1.0]
