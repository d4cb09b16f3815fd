"""Means, intervals and comparisons, done by hand."""

from __future__ import annotations

import pytest

from benchmarks.experiments.tables import (
    HIGHER,
    LOWER,
    NONE,
    ONE_SEED,
    OPEN,
    compare,
    estimate,
    find_rows,
    make_comparison,
    make_table,
)
from tests.benchmarks.experiments.small import load_small, write_results, write_row


def test_an_interval_is_students():
    found = estimate([1.0, 2.0, 3.0])  # deviation 1, t of 2 degrees 4.3027
    assert (found.mean, found.count) == (2.0, 3)
    assert found.margin == pytest.approx(4.3027 / 3**0.5, abs=1e-4)
    assert str(found) == "2.000 ± 2.484 (3)"
    assert str(estimate([0.25])) == "0.250 (1)"


def _values(tmp_path, subject, control):
    experiment, rows = load_small(write_results(tmp_path, seeds=[0, 1, 2]))
    for run in experiment.runs():
        values = subject if run.setting == "two heads" else control
        if run.budget == "images" and run.seed < len(values):
            write_row(rows, run, values[run.seed])
    return experiment, find_rows(experiment, rows)


@pytest.mark.parametrize(
    ("subject", "control", "word"),
    [
        ([0.5, 0.6, 0.7], [0.4, 0.5, 0.61], HIGHER),
        ([0.4, 0.5, 0.61], [0.5, 0.6, 0.7], LOWER),
        ([0.5, 0.6, 0.7], [0.4, 0.7, 0.61], OPEN),
        ([0.9], [0.1], ONE_SEED),
        ([0.9, 0.9], [], NONE),
    ],
)
def test_a_difference_is_told_only_where_its_interval_leaves_out_zero(tmp_path, subject, control, word):
    experiment, found = _values(tmp_path, subject, control)
    difference, said = compare(experiment, found, "images", "one head")
    assert said == word
    if word not in (NONE, ONE_SEED):
        pairs = zip(subject, control, strict=True)
        assert difference.mean == pytest.approx(sum(a - b for a, b in pairs) / len(subject))
    table = make_comparison([experiment], [found])
    assert ("**" in table) == (word in (HIGHER, LOWER))


def test_seeds_that_only_one_of_two_settings_has_are_not_compared(tmp_path):
    experiment, found = _values(tmp_path, [0.5, 0.6, 0.9], [0.4])
    difference, said = compare(experiment, found, "images", "one head")
    assert said == ONE_SEED and difference.mean == pytest.approx(0.1)


def test_a_table_holds_means_and_what_is_missing(tmp_path):
    experiment, found = _values(tmp_path, [0.5, 0.7], [])
    lines = make_table(experiment, found).splitlines()
    assert lines[2] == f"| two heads | 1,000 | {estimate([0.5, 0.7])} | 48 | 1 | – | – | – |"
    assert lines[3] == "| one head | – | – | – | – | – | – | – |"
