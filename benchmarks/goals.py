"""The goals as data: ratios of measurements taken side by side in one run, and whether they hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.levels import QUICK_LIMIT
from benchmarks.record import Key, Measurement

HELD, MISSED, NOT_MEASURED = "held", "missed", "not measured"
GIB = float(1 << 30)
MILLION = Key("model", "cast_vit_pixel_patch1_128", 1024, quantity="bytes")
"""Ours with one token a pixel on 1024 × 1024 pixels: six blocks of width 192 with six heads."""

_KINDS = {
    "speed-up": ("theirs / ours", True),
    "gain": ("ours / theirs", True),
    "share": ("ours / theirs", False),
    "at least": ("ours", True),
    "at most": ("ours", False),
}


@dataclass(frozen=True)
class Goal:
    """A bound on a ratio, or on one measurement.

    Attributes:
        name: For the reader.
        kind: "speed-up" (theirs over ours, at least the bound), "gain" (ours over theirs, at least), "share" (ours over
            theirs, at most), "at least" or "at most" (ours alone).
        bound: The goal.
        ours: The measurement it is about.
        theirs: What it is compared with: the least of those that were measured; empty for a measurement alone.
        needs: Hardware: "cpu", "cpu amx", "2 cores" or "cuda".
        unit: What ``ours`` is divided by to be shown, and the unit's name, for a measurement alone.
    """

    name: str
    kind: str
    bound: float
    ours: Key
    theirs: tuple[Key, ...] = ()
    needs: str = "cpu"
    unit: tuple[float, str] = (1.0, "")

    @property
    def is_quick(self) -> bool:
        """Whether a quick run measures it."""
        if self.ours.quantity == "bytes":
            return (self.ours.level, self.ours.subject, self.ours.size) == ("layer", "cast", QUICK_LIMIT)
        if self.ours.level in ("op", "layer", "block"):
            return self.ours.size <= QUICK_LIMIT
        return self.ours.level == "data" and self.ours.size <= 128

    @property
    def keys(self) -> tuple[Key, ...]:
        """All measurements it reads."""
        return (self.ours, *self.theirs)


@dataclass(frozen=True)
class Verdict:
    """A goal with its measured ratio.

    Attributes:
        goal: The goal.
        ratio: The ratio or measurement; None where something was not measured.
        outcome: "held", "missed" or "not measured" (the hardware is absent; it does not count).
        reason: Why there is no ratio, or what must be known of it.
    """

    goal: Goal
    ratio: float | None
    outcome: str
    reason: str = ""


def judge(goal: Goal, measurements: Mapping[Key, Measurement], hardware: frozenset[str]) -> Verdict:
    """Hold a goal against the measurements.

    Args:
        goal: The goal.
        measurements: All of a run.
        hardware: What this machine has, in the words of ``Goal.needs``.

    Returns:
        The verdict; a goal that could be measured here and was not is missed.
    """
    ours = measurements.get(goal.ours)
    rivals = [measurements[key] for key in goal.theirs if key in measurements]
    ratio = None
    reason = ""
    if ours is not None and (rivals or not goal.theirs):
        theirs = min((rival.value for rival in rivals), default=1.0)
        ratio = theirs / ours.value if goal.kind == "speed-up" else ours.value / theirs
        reason = "; ".join(f"{each.key.subject}: {each.note}" for each in (ours, *rivals) if not each.repeats)
    if goal.needs not in hardware:
        return Verdict(goal, ratio, NOT_MEASURED, f"no {goal.needs} here")
    if ratio is None:
        return Verdict(goal, None, MISSED, "no figure")
    holds = ratio >= goal.bound if _KINDS[goal.kind][1] else ratio <= goal.bound
    return Verdict(goal, ratio, HELD if holds else MISSED, reason)


def is_at_least(goal: Goal) -> bool:
    """Whether larger is better."""
    return _KINDS[goal.kind][1]


def make_goals() -> list[Goal]:
    """Every goal, CPU first."""
    return [
        *_speed("fp32", "forward", _FORWARD, "cpu"), *_speed("fp32", "training", _TRAINING, "cpu"),
        *_speed("bf16", "forward", _FORWARD_AMX, "cpu amx"), *_memory("cpu", "fp32"), *_routing(), *_blocks(),
        *_million(), *_data(), *_memory("cuda", "bf16"),
    ]  # fmt: skip


_FORWARD = {1024: 1.3, 4096: 3.5, 16384: 11.0, 65536: 33.0}
_TRAINING = {**_FORWARD, 1024: 1.2}
_FORWARD_AMX = {1024: 0.9, 4096: 2.5, 16384: 9.0, 65536: 28.0}
_MEMORY = {"training": 1.25, "forward": 1.1}
_ROUTING_INPUTS = ("0% blank", "100% blank")


def _speed(dtype: str, phase: str, bounds: Mapping[int, float], needs: str) -> list[Goal]:
    goals = []
    for size, bound in bounds.items():
        ours = Key("layer", "cast", size, dtype, phase)
        goals.append(Goal(f"{_name(ours)} over SDPA", "speed-up", bound, ours, (ours.of(subject="sdpa"),), needs))
    return goals


def _memory(device: str, dtype: str) -> list[Goal]:
    goals = []
    for phase, bound in _MEMORY.items():
        for size in _FORWARD:
            ours = Key("layer", "cast", size, dtype, phase, device, quantity="bytes")
            name = f"{_name(ours)}, memory over SDPA"
            goals.append(Goal(name, "share", bound, ours, (ours.of(subject="sdpa"),), device))
    return goals


def _routing() -> list[Goal]:
    goals = []
    for inputs in _ROUTING_INPUTS:
        ours = Key("layer", "routing", 16384, inputs=inputs)
        name = f"routing over layer 16,384 fp32 fwd, {inputs}"
        goals.append(Goal(name, "share", 0.25, ours, (ours.of(subject="cast"),)))
    return goals


def _blocks() -> list[Goal]:
    goals = []
    for size in _FORWARD:
        ours = Key("block", "cast", size)
        goals.append(Goal(f"{_name(ours)} over no attention", "share", 1.6, ours, (ours.of(subject="no-core"),)))
    return goals


def _million() -> list[Goal]:
    return [Goal("a million tokens, fwd, memory", "at most", 12 * GIB, MILLION, unit=(GIB, "GiB"))]


def _data() -> list[Goal]:
    goals = []
    for size in (64, 128):
        ours = Key("data", "generator", size, quantity="images/s")
        goals.append(Goal(f"Pathfinder {size} px, images a core-second", "at least", 400.0, ours))
        two = ours.of(subject="generator, 2 processes")
        one = ours.of(subject="generator, 1 process")
        goals.append(Goal(f"Pathfinder {size} px, two processes over one", "gain", 1.6, two, (one,), "2 cores"))
    return goals


def _name(key: Key) -> str:
    return f"{key.level} {key.size:,} {key.dtype} {'fwd + bwd' if key.phase == 'training' else 'fwd'}"
