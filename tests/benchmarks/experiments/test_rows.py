"""Rows: one a run, finished once, and only of the experiment as it is defined now."""

from __future__ import annotations

import pytest

from tests.benchmarks.experiments.small import load_small, write_results, write_row


def test_a_row_counts_for_its_own_run_only(tmp_path):
    experiment, rows = load_small(write_results(tmp_path))
    first, *others = experiment.runs()
    row = write_row(rows, first, 0.5)
    assert rows.finished(first) == row
    assert not any(rows.find(run) for run in others)


@pytest.mark.parametrize(
    "changes", [{"images": 80}, {"config": {"data": {"init_args": {"batch_size": 4}}, "model": {}}}]
)
def test_a_row_of_another_definition_does_not_count(tmp_path, changes):
    experiment, rows = load_small(write_results(tmp_path))
    write_row(rows, experiment.runs()[0], 0.5)
    changed, _ = load_small(write_results(tmp_path, **changes))
    run = changed.runs()[0]
    assert rows.find(run) is None and rows.is_outdated(run)


def test_a_finished_row_is_never_written_again_an_unfinished_one_is(tmp_path):
    experiment, rows = load_small(write_results(tmp_path))
    run = experiment.runs()[0]
    row = write_row(rows, run, 0.5, finished=False)
    assert rows.find(run) == row and rows.finished(run) is None
    rows.write(run, {**row, "finished": True})
    with pytest.raises(FileExistsError):
        rows.write(run, row)
    assert rows.finished(run) is not None


def test_steps_at_equal_time_follow_from_the_rate_at_equal_images(tmp_path):
    experiment, rows = load_small(write_results(tmp_path, seconds=6))
    at_time = next(run for run in experiment.runs() if run.budget == "seconds")
    assert rows.steps(experiment.runs()[0]) == 12
    assert rows.steps(at_time) is None
    write_row(rows, experiment.runs()[0], 0.5)  # 40 images a second
    assert rows.steps(at_time) == 6 * 40 // 4
    write_row(rows, experiment.runs()[0], 0.5, machine={"cpu": "c", "instructions": "", "gpu": "some GPU"})
    assert rows.steps(at_time) == 6 * 20 // 4, "on a GPU the clock counts, not the processor"


def test_at_equal_time_rows_of_another_time_do_not_count(tmp_path):
    experiment, rows = load_small(write_results(tmp_path))
    run = next(run for run in experiment.runs() if run.budget == "seconds")
    write_row(rows, run, 0.5, steps=17)
    assert rows.finished(run) is not None
    changed, _ = load_small(write_results(tmp_path, seconds=7))
    assert rows.finished(next(run for run in changed.runs() if run.budget == "seconds")) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99}'])
def test_files_that_are_no_rows_are_named(tmp_path, text):
    experiment, rows = load_small(write_results(tmp_path))
    run = experiment.runs()[0]
    write_row(rows, run, 0.5)
    rows.path(run).write_text(text)
    with pytest.raises(ValueError, match=r"two_heads-images-0\.json"):
        rows.find(run)
