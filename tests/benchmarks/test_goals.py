from __future__ import annotations

import pytest

from benchmarks.goals import HELD, MISSED, NOT_MEASURED, Goal, judge, make_goals
from benchmarks.record import Key, Measurement, single_measurement

OURS = Key("layer", "cast", 1024)
SDPA, OTHER = OURS.of(subject="sdpa"), OURS.of(subject="other")
CPU = frozenset({"cpu"})


def measurements_of(**values: float) -> dict[Key, Measurement]:
    keys = {"ours": OURS, "sdpa": SDPA, "other": OTHER}
    return {keys[name]: single_measurement(keys[name], value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("kind", "bound", "values", "ratio", "outcome"),
    [
        ("speed-up", 3.0, {"ours": 2.0, "sdpa": 8.0, "other": 6.0}, 3.0, HELD),  # against the fastest
        ("speed-up", 3.1, {"ours": 2.0, "sdpa": 8.0, "other": 6.0}, 3.0, MISSED),
        ("speed-up", 3.1, {"ours": 2.0, "sdpa": 8.0}, 4.0, HELD),  # a rival that is not there
        ("share", 1.25, {"ours": 5.0, "sdpa": 4.0}, 1.25, HELD),
        ("share", 1.25, {"ours": 5.1, "sdpa": 4.0}, 1.275, MISSED),
        ("gain", 1.6, {"ours": 8.0, "sdpa": 5.0}, 1.6, HELD),
        ("gain", 1.6, {"ours": 7.0, "sdpa": 5.0}, 1.4, MISSED),
    ],
)
def test_ratio_and_verdict(kind, bound, values, ratio, outcome):
    goal = Goal("g", kind, bound, OURS, (SDPA, OTHER))
    verdict = judge(goal, measurements_of(**values), CPU)
    assert verdict.ratio == pytest.approx(ratio)
    assert verdict.outcome == outcome


@pytest.mark.parametrize(("kind", "outcomes"), [("at least", (MISSED, HELD)), ("at most", (HELD, MISSED))])
def test_a_figure_alone(kind, outcomes):
    goal = Goal("g", kind, 400.0, OURS)
    assert tuple(judge(goal, measurements_of(ours=value), CPU).outcome for value in (399.0, 401.0)) == outcomes


def test_absent_hardware_does_not_count_and_a_missing_figure_does():
    goal = Goal("g", "speed-up", 2.0, OURS, (SDPA,), needs="cuda")
    verdict = judge(goal, {}, CPU)
    assert (verdict.outcome, verdict.ratio, verdict.reason) == (NOT_MEASURED, None, "no cuda here")
    assert judge(goal, {}, frozenset({"cuda"})).outcome == MISSED
    assert judge(goal, measurements_of(ours=1.0), frozenset({"cuda"})).reason == "no figure"


def test_what_was_worked_out_is_said():
    measurements = measurements_of(ours=1.0, sdpa=6.0)
    measurements[SDPA] = single_measurement(SDPA, 6.0, "one head timed, times 6", repeats=0)
    assert judge(Goal("g", "speed-up", 2.0, OURS, (SDPA,)), measurements, CPU).reason == (
        "sdpa: one head timed, times 6"
    )


def test_the_table_of_goals():
    goals = make_goals()
    assert len({(goal.name, goal.needs) for goal in goals}) == len(goals)
    bounds = {goal.ours: goal.bound for goal in goals}
    sizes = (1024, 4096, 16384, 65536)
    assert [bounds[Key("layer", "cast", size)] for size in sizes] == [1.3, 3.5, 11, 33]
    assert [bounds[Key("layer", "cast", size, phase="training")] for size in sizes] == [1.2, 3.5, 11, 33]
    assert [bounds[Key("layer", "cast", size, "bf16")] for size in sizes] == [0.9, 2.5, 9, 28]
    assert bounds[Key("layer", "cast", 65536, phase="training", quantity="bytes")] == 1.25
    assert bounds[Key("layer", "cast", 65536, quantity="bytes")] == 1.1
    assert bounds[Key("block", "cast", 65536)] == 1.6
    assert {goal.needs for goal in goals if goal.ours.dtype == "bf16" and goal.ours.device == "cpu"} == {"cpu amx"}
    assert {goal.ours.subject for goal in goals if goal.ours.level == "layer"} == {"cast", "routing"}
    quick = [goal for goal in goals if goal.is_quick]
    assert quick and all(goal.ours.size <= 4096 and goal.ours.level != "model" for goal in quick)
