"""Runs of a fake experiment: killed, stopped, resumed, shared; nothing runs twice, and the result is one that nobody
disturbed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from benchmarks.experiments.running import DONE, STOPPED, Budget, missing_runs, run_all, run_one
from castvision.inference.folder_lock import FolderLock
from castvision.models import checkpoint_file
from tests.benchmarks.experiments.small import load_small, write_results, write_row

ONE = {"seeds": [0], "settings": ["two heads"], "seconds": None}
NEVER = Budget(None)


class UntilCheckpoint(Budget):
    """Spent as soon as a run has a checkpoint."""

    def __init__(self, folder):
        super().__init__(None)
        self.folder = folder

    @property
    def left(self):
        _wait_for(self.folder / "last.ckpt")
        return 0.0


class Interrupted(UntilCheckpoint):
    """The tool itself is told to end."""

    @property
    def left(self):
        _wait_for(self.folder / "last.ckpt")
        raise SystemExit(128 + signal.SIGTERM)


def _wait_for(path):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The row of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    experiment, rows = load_small(write_results(folder, **ONE))
    assert run_all(missing_runs([experiment], rows), rows, folder / "runs", NEVER, lambda line: None) == []
    return rows.finished(experiment.runs()[0])


def _same(row, other):
    names = ("metrics", "curve", "steps", "images", "best_step", "config", "parameters")
    return all(row[name] == other[name] for name in names)


def test_a_row_holds_what_a_reader_needs(whole):
    assert whole["finished"] and whole["images"] == 48 and whole["steps"] == 12
    assert 0 <= whole["metrics"]["iou_way"] <= 1
    assert len(whole["curve"]) == 6 and whole["curve"][-1][0] == 48
    assert 0 < whole["cpu_seconds"] and 0 < whole["seconds"]
    assert whole["machine"]["cpu"] and whole["versions"]["torch"] and len(whole["commits"]) == 1


def test_killed_without_notice_it_goes_on_and_ends_the_same(tmp_path, whole):
    experiment, rows = load_small(write_results(tmp_path, **ONE))
    run = experiment.runs()[0]
    child = os.fork()
    if not child:
        try:
            run_all(missing_runs([experiment], rows), rows, tmp_path / "runs", NEVER, lambda line: None)
        finally:
            os._exit(0)
    _wait_for(tmp_path / "runs" / run.key / "last.ckpt")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert rows.find(run) is None
    end = time.monotonic() + 30  # the process that trains ends with the one that started it, and frees the folder
    while time.monotonic() < end:
        told = []
        assert run_all(missing_runs([experiment], rows), rows, tmp_path / "runs", NEVER, told.append) == []
        if rows.finished(run):
            break
        time.sleep(0.02)
    assert _same(rows.finished(run), whole)
    parts = list((tmp_path / "runs" / run.key).glob("logs/version_*"))
    assert len(parts) == 2, "it went on, and did not start anew"


def test_a_spent_budget_stops_a_run_at_a_checkpoint_with_its_curve_so_far(tmp_path, whole):
    experiment, rows = load_small(write_results(tmp_path, **ONE))
    run, folder = experiment.runs()[0], tmp_path / "runs"
    folder.mkdir()
    assert run_one(run, rows, folder, UntilCheckpoint(folder)) == STOPPED
    row = rows.find(run)
    assert not row["finished"] and 0 < row["images"] < 48 and row["images"] == 4 * row["steps"]
    assert row["curve"] == whole["curve"][: len(row["curve"])] and row["curve"]
    assert missing_runs([experiment], rows) == [run]
    assert run_one(run, rows, folder, NEVER) == DONE
    assert _same(rows.finished(run), whole)


def test_told_to_end_it_lets_training_save_and_leaves_no_process(tmp_path):
    experiment, rows = load_small(write_results(tmp_path, **ONE))
    run, folder = experiment.runs()[0], tmp_path / "run"
    folder.mkdir()
    with pytest.raises(SystemExit):
        run_one(run, rows, folder, Interrupted(folder))
    assert not multiprocessing.active_children()
    assert rows.find(run) is None and 0 < checkpoint_file.read(folder / "last.ckpt")["global_step"] <= 12


def test_between_training_and_its_row_only_the_row_is_made(tmp_path, whole, monkeypatch):
    experiment, rows = load_small(write_results(tmp_path, **ONE))
    run, folder = experiment.runs()[0], tmp_path / "run"
    folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(rows, "write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            run_one(run, rows, folder, NEVER)
    monkeypatch.setattr("benchmarks.experiments.running._train", lambda *_: pytest.fail("trained again"))
    assert run_one(run, rows, folder, NEVER) == DONE
    assert _same(rows.finished(run), whole)


def test_first_seeds_at_equal_images_come_first(tmp_path):
    experiment, rows = load_small(write_results(tmp_path))
    write_row(rows, experiment.runs()[1], 0.5)
    order = [(run.seed, run.budget, run.setting) for run in missing_runs([experiment], rows)]
    assert order == [
        (0, "images", "two heads"), (0, "seconds", "two heads"), (0, "seconds", "one head"), (1, "images", "two heads"),
        (1, "images", "one head"), (1, "seconds", "two heads"), (1, "seconds", "one head"),
    ]  # fmt: skip


def test_a_pattern_chooses_runs(tmp_path):
    experiment, rows = load_small(write_results(tmp_path))
    keys = [run.key for run in missing_runs([experiment], rows, "*/one_head-images-*")]
    assert keys == ["small/one_head-images-0", "small/one_head-images-1"]


def test_what_cannot_run_is_told_and_the_others_go_on(tmp_path, monkeypatch):
    experiment, rows = load_small(write_results(tmp_path, seeds=[0], needs=["no such file"]))
    told = []
    assert run_all(missing_runs([experiment], rows), rows, tmp_path / "runs", NEVER, told.append) == []
    assert len(told) == 4 and all("needs no such file" in line for line in told)
    experiment, rows = load_small(write_results(tmp_path, seeds=[0]))
    monkeypatch.setattr("benchmarks.experiments.running._train", lambda *_: 1)
    told = []
    failed = run_all(missing_runs([experiment], rows), rows, tmp_path / "runs", NEVER, told.append)
    assert failed == experiment.runs()
    assert "small/one_head-images-0: failed" in told
    assert any("expected a finished run at equal images" in line for line in told)


def test_a_folder_that_another_process_trains_in_is_left_alone(tmp_path, monkeypatch):
    experiment, rows = load_small(write_results(tmp_path, **ONE))
    folder = tmp_path / "runs" / experiment.runs()[0].key
    folder.mkdir(parents=True)
    lock = FolderLock(folder)
    monkeypatch.setattr("benchmarks.experiments.running._train", lambda *_: pytest.fail("trained"))
    told = []
    run_all(missing_runs([experiment], rows), rows, tmp_path / "runs", NEVER, told.append)
    assert told == ["small/two_heads-images-0: left out, another process is at it"]
    del lock


def test_a_folder_of_another_definition_is_not_gone_on_with(tmp_path, monkeypatch):
    experiment, rows = load_small(write_results(tmp_path, **ONE))
    monkeypatch.setattr("benchmarks.experiments.running._train", lambda *_: -signal.SIGTERM)
    folder = tmp_path / "run"
    folder.mkdir()
    assert run_one(experiment.runs()[0], rows, folder, NEVER) == STOPPED
    changed, _ = load_small(write_results(tmp_path, **ONE, rounds=2))
    with pytest.raises(ValueError, match="another definition"):
        run_one(changed.runs()[0], rows, folder, NEVER)


def test_nothing_begins_once_the_budget_is_spent(tmp_path):
    experiment, rows = load_small(write_results(tmp_path))
    told = []
    assert run_all(missing_runs([experiment], rows), rows, tmp_path / "runs", Budget(0), told.append) == []
    assert told == ["the budget is spent"] and not list(tmp_path.glob("runs/*/*"))
