"""Interleaved timing: every round runs each competitor once on fresh inputs, so that a slow minute hits all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

Clock = Callable[[Callable[[], object]], float]
"""Runs the call and gives the seconds it took."""

LONG = 3.0
"""Seconds from which the first call counts as a measurement: what it warms up is small beside it."""

TOO_LONG = 45.0
"""Seconds from which one call must do."""


class Competitor(Protocol):
    """Something to time."""

    def ready(self) -> AbstractContextManager[None]:
        """Draw fresh inputs into memory that is there already; the call to time comes inside."""

    def run(self) -> object:
        """The call that is timed."""


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and number of some samples."""

    median: float
    low: float
    high: float
    count: int


def make_spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of the samples, interpolated between them.

    Raises:
        ValueError: No samples.
    """
    if not samples:
        raise ValueError("expected at least one sample, got none")
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, low, high, len(samples))


def wall_clock(call: Callable[[], object]) -> float:
    """Seconds by the wall, for a CPU."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def process_clock(call: Callable[[], object]) -> float:
    """Seconds of CPU time of this process, for single-threaded work."""
    start = time.process_time()
    call()
    return time.process_time() - start


def cuda_clock(call: Callable[[], object]) -> float:
    """Seconds between two events around the call on the current CUDA stream, all earlier work done."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


def make_clock(device: str, threads: int) -> Clock:
    """Events on CUDA, CPU time for one thread (other work on the machine disturbs it less), else the wall."""
    if device == "cuda":
        return cuda_clock
    return process_clock if threads == 1 else wall_clock


def interleave(
    competitors: Mapping[str, Competitor], clock: Clock, *, budget: float, least: int, most: int
) -> dict[str, list[float]]:
    """Time competitors in rounds, after one call of each to warm up.

    A competitor leaves once it has ``most`` samples, or ``least`` of them and its budget spent. One whose first call
    takes LONG keeps that call as a sample, and one that takes TOO_LONG has it as its only one.

    Args:
        competitors: By name.
        clock: Times a call.
        budget: Seconds of samples a competitor may take.
        least: Fewest samples.
        most: Most samples.

    Returns:
        Seconds of every sample, by name.
    """
    samples: dict[str, list[float]] = {}
    for name, competitor in competitors.items():
        first = _time(competitor, clock)
        samples[name] = [first] if first >= LONG else []

    def is_done(taken: list[float]) -> bool:
        if taken and taken[0] >= TOO_LONG:
            return True
        return len(taken) >= most or (len(taken) >= least and sum(taken) >= budget)

    while waiting := [name for name, taken in samples.items() if not is_done(taken)]:
        for name in waiting:
            samples[name].append(_time(competitors[name], clock))
    return samples


def _time(competitor: Competitor, clock: Clock) -> float:
    with competitor.ready():
        return clock(competitor.run)
