"""Train and test the runs that have no row yet, one after the other, each in a process of its own.

Everything that is known lies on the disk: a row says that a run is finished, its folder how far it came. So the tool
may be killed at any time, and two of them share the work: a run's folder is locked while it is trained.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from benchmarks.experiments.definition import BUDGETS, Experiment, Run
from benchmarks.experiments.rows import Rows, make_row, make_unfinished_row
from castvision.files import draft
from castvision.inference.folder_lock import FolderLock

ROOT = Path(__file__).resolve().parents[2]
DONE, STOPPED, FAILED = "done", "stopped", "failed"
CONFIG, FACTS = "experiment.yaml", "experiment.json"
# on Linux, what was imported once serves all runs
_CONTEXT = multiprocessing.get_context("fork") if sys.platform == "linux" else multiprocessing.get_context("spawn")
_STOPPED_CODES = (128 + signal.SIGTERM, -signal.SIGTERM)


class Budget:
    """Time that may be spent.

    Args:
        seconds: By the clock, from now on; None = without end.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float | None:
        """Seconds, 0 where it is spent; None without end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def is_spent(self) -> bool:
        """Whether nothing is left."""
        return self.left == 0.0


def missing_runs(experiments: Sequence[Experiment], rows: Rows, match: str = "*") -> list[Run]:
    """Runs without a finished row: all first seeds at equal images, then at equal time, then the next seeds.

    Args:
        experiments: Whose runs.
        rows: The finished ones.
        match: A shell pattern of keys.
    """
    runs = [
        run for each in experiments for run in each.runs() if fnmatchcase(run.key, match) and not rows.finished(run)
    ]
    return sorted(runs, key=lambda run: (run.experiment.seeds.index(run.seed), BUDGETS.index(run.budget)))


def run_all(runs: Sequence[Run], rows: Rows, place: Path, budget: Budget, tell: Callable[[str], None]) -> list[Run]:
    """Run one after the other until the budget is spent.

    Args:
        runs: Without a finished row.
        rows: Where finished ones are kept.
        place: Holds a folder a run, with its checkpoints.
        budget: Runs begin while it is not spent; the one that is training then stops with a checkpoint.
        tell: Gets a line for each run.

    Returns:
        Those that failed.
    """
    if sys.platform == "linux":
        import_module("castvision.training.cli")
    failed = []
    for run in runs:
        if budget.is_spent:
            tell("the budget is spent")
            break
        lacking = [path for path in run.experiment.needs if not Path(path).exists()]
        if lacking:
            tell(f"{run.key}: left out, needs {', '.join(lacking)}")
            continue
        folder = place / run.key
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FolderLock(folder)
        except BlockingIOError:
            tell(f"{run.key}: left out, another process is at it")
            continue
        if rows.finished(run) is None:  # by another process, since the list was made
            try:
                outcome = run_one(run, rows, folder, budget)
            except ValueError as error:  # the others need not wait for what is wrong with this one
                outcome = FAILED
                tell(f"{run.key}: {error}")
            tell(f"{run.key}: {outcome}{_found(run, rows)}")
            failed += [run] if outcome == FAILED else []
        del lock
    return failed


def _found(run: Run, rows: Rows) -> str:
    row = rows.find(run)
    if row is None:
        return ""
    if not row["finished"]:
        return f" after {row['images']:,} images"
    return f", {run.experiment.metric} {row['metrics'][run.experiment.metric]:.3f}, {row['seconds']:.0f} s"


def run_one(run: Run, rows: Rows, folder: Path, budget: Budget) -> str:
    """Begin a run or go on with it, test it, keep its row.

    Args:
        run: Has no finished row.
        rows: Where it is kept.
        folder: The run's.
        budget: When to stop.

    Returns:
        `DONE`, `STOPPED` (the budget is spent; it goes on from a checkpoint) or `FAILED`.

    Raises:
        ValueError: The folder holds an unfinished run of another definition, or no rate says how many steps fit.
    """
    config, commits = _prepare(run, rows, folder)
    if not (folder / "metrics.json").is_file():
        resume = ["--resume"] if any((folder / name).is_file() for name in ("last.ckpt", "best.ckpt")) else []
        code = _train(["fit", *_arguments(folder), *resume], budget)
        if code in _STOPPED_CODES:
            row = make_unfinished_row(run, config, folder, commits)
            if row is not None:
                rows.write(run, row)
            return STOPPED
        if code:
            return FAILED
    # the images read once take seconds: they are not stopped by a budget
    if not (folder / "test_metrics.json").is_file() and _train(["test", *_arguments(folder)], Budget(None)):
        return FAILED
    rows.write(run, make_row(run, config, folder, commits))
    return DONE


def _arguments(folder: Path) -> list[str]:
    return ["--config", str(folder / CONFIG), "--run_dir", str(folder)]


def _prepare(run: Run, rows: Rows, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """A run's configuration and commits; a run that was begun keeps its number of steps."""
    facts_file = folder / FACTS
    if facts_file.is_file():
        facts = json.loads(facts_file.read_text(encoding="utf-8"))
        if not run.is_same(facts["config"]):
            raise ValueError(f"{folder} holds a run of another definition of {run.experiment.name}; move it away")
    else:
        steps = rows.steps(run)
        if steps is None:
            raise ValueError(f"{run.key}: expected a finished run at equal images, whose rate says how many steps fit")
        facts = {"config": run.config(steps), "commits": []}
    facts["commits"] = list(dict.fromkeys([*facts["commits"], find_commit()]))
    with draft(folder / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(facts["config"]), encoding="utf-8")
    with draft(facts_file) as temporary:
        temporary.write_text(json.dumps(facts), encoding="utf-8")
    return facts["config"], facts["commits"]


def find_commit() -> str:
    """The checkout's, with a "+" where files that git knows were changed; "unknown" without git."""
    try:
        git = ["git", "-C", str(ROOT)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "*.py"], capture_output=True).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+" if changed else commit


def _train(arguments: list[str], budget: Budget) -> int:
    """Run ``castvision train`` in a process of its own, which ends with this one; SIGTERM when the budget is spent."""
    process = _CONTEXT.Process(target=_child, args=(arguments,))
    process.start()
    try:
        process.join(budget.left)
    finally:  # also where this process is told to end: training stops at a step, with a checkpoint
        if process.exitcode is None:
            process.terminate()
            process.join()
    return int(process.exitcode or 0)


def _child(arguments: list[str]) -> None:
    threading.Thread(target=_follow_parent, daemon=True).start()
    from castvision_cli.train import main

    sys.exit(main(arguments))


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
