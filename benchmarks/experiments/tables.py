"""Means with intervals over seeds, differences with intervals, and the Markdown tables made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.experiments.definition import BUDGETS, Experiment, Run
from benchmarks.experiments.rows import Rows

Found = dict[tuple[str, str], dict[int, dict[str, Any]]]
"""Finished rows by (setting, budget), then by seed."""
HEADINGS = {"images": "at equal images", "seconds": "at equal time"}
HIGHER, LOWER, OPEN, ONE_SEED, NONE = "higher", "lower", "not told apart", "one seed", "–"


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: Of the values.
        margin: Half of the interval that holds the true mean in 95 of 100 such samples (Student's t); None of one seed.
        count: Of seeds.
    """

    mean: float
    margin: float | None
    count: int

    def __str__(self) -> str:
        """Such as ``0.512 ± 0.034 (3)``."""
        spread = "" if self.margin is None else f" ± {self.margin:.3f}"
        return f"{self.mean:.3f}{spread} ({self.count})"


def estimate(values: Sequence[float]) -> Estimate:
    """Of at least one value."""
    from scipy.stats import t  # late: help needs none of it

    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return Estimate(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    return Estimate(mean, float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count), count)


def find_rows(experiment: Experiment, rows: Rows) -> Found:
    """Finished rows of an experiment."""
    found: Found = {}
    for run in experiment.runs():
        row = rows.finished(run)
        if row is not None:
            found.setdefault((run.setting, run.budget), {})[run.seed] = row
    return found


def find_unfinished(experiment: Experiment, rows: Rows) -> list[tuple[Run, dict[str, Any]]]:
    """Runs that were stopped, with how far they came."""
    pairs = ((run, rows.find(run)) for run in experiment.runs())
    return [(run, row) for run, row in pairs if row is not None and not row["finished"]]


def metric_of(experiment: Experiment, of_seeds: dict[int, dict[str, Any]]) -> dict[int, float]:
    """The experiment's metric by seed."""
    return {seed: float(row["metrics"][experiment.metric]) for seed, row in of_seeds.items()}


def make_table(experiment: Experiment, found: Found) -> str:
    """A row a setting: parameters; metric, images and seconds of the processor, at equal images and at equal time."""
    budgets = BUDGETS if experiment.seconds is not None else BUDGETS[:1]
    heads = ["attention", "parameters"]
    for budget in budgets:
        heads += [f"{experiment.metric} {HEADINGS[budget]}", "images", "CPU s"]
    lines = []
    for setting in experiment.settings:
        rows = [row for budget in budgets for row in found.get((setting, budget), {}).values()]
        cells = [setting, f"{rows[0]['parameters']:,}" if rows else NONE]
        for budget in budgets:
            cells += _cells(experiment, found.get((setting, budget), {}))
        lines.append(cells)
    return markdown(heads, lines)


def _cells(experiment: Experiment, of_seeds: dict[int, dict[str, Any]]) -> list[str]:
    if not of_seeds:
        return [NONE] * 3
    rows = list(of_seeds.values())
    images, seconds = (math.fsum(row[name] for row in rows) / len(rows) for name in ("images", "cpu_seconds"))
    return [str(estimate(list(metric_of(experiment, of_seeds).values()))), f"{images:,.0f}", f"{seconds:.0f}"]


def compare(experiment: Experiment, found: Found, budget: str, control: str) -> tuple[Estimate | None, str]:
    """The subject's metric less a control's, seed by seed, and what it says.

    Returns:
        (difference or None, one of `HIGHER`, `LOWER`, `OPEN`, `ONE_SEED`, `NONE`).
    """
    of_subject, of_control = (
        metric_of(experiment, found.get((setting, budget), {})) for setting in (experiment.subject, control)
    )
    shared = sorted(of_subject.keys() & of_control.keys())
    if not shared:
        return None, NONE
    difference = estimate([of_subject[seed] - of_control[seed] for seed in shared])
    if difference.margin is None:
        return difference, ONE_SEED
    if abs(difference.mean) <= difference.margin:
        return difference, OPEN
    return difference, HIGHER if difference.mean > 0 else LOWER


def make_comparison(experiments: Sequence[Experiment], of_all: Sequence[Found]) -> str:
    """A row an experiment and budget, a column a control: the subject's lead, bold where the interval leaves out 0."""
    controls = list(dict.fromkeys(name for each in experiments for name in each.settings if name != each.subject))
    lines = []
    for experiment, found in zip(experiments, of_all, strict=True):
        for budget in BUDGETS if experiment.seconds is not None else BUDGETS[:1]:
            cells = [f"{experiment.name}, {experiment.metric} {HEADINGS[budget]}"]
            for control in controls:
                difference, word = compare(experiment, found, budget, control)
                if difference is None:
                    cells.append(NONE)
                    continue
                spread = "" if difference.margin is None else f" ± {difference.margin:.3f}"
                text = f"{difference.mean:+.3f}{spread}"
                cells.append(f"**{text}, {word}**" if word in (HIGHER, LOWER) else f"{text}, {word}")
            if set(cells[1:]) != {NONE}:
                lines.append(cells)
    subjects = ", ".join(dict.fromkeys(each.subject for each in experiments))
    return markdown([f"{subjects} less …", *controls], lines)


def make_unfinished_table(pairs: Sequence[tuple[Run, dict[str, Any]]]) -> str:
    """A row a run that was stopped: how far it came, in which time, and what it reached on the choosing images."""
    lines = []
    for run, row in pairs:
        best = max((value for _, value in row["curve"]), default=None)
        hours = f"{row['seconds'] / 3600:.2f}"
        reached = NONE if best is None else f"{best:.3f}"
        lines.append([run.key, f"{row['images']:,}", hours, reached])
    return markdown(["run", "images so far", "hours so far", "best on the choosing images"], lines)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table; "" without lines."""
    if not lines:
        return ""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
