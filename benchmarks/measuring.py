"""How time and memory are measured.

Time: competitors are interleaved. Every round runs each once on fresh inputs, so that a slow minute hits all alike.

Memory: the peak of one call in a fresh process; ``python -m benchmarks.measuring`` reads a key, gives a peak. The
baseline is taken after the imports and a small warm-up, before anything of the measured size exists: weights, inputs
and outputs count, on both sides of a ratio. CPU: resident memory from /proc/self/status (VmHWM, its mark reset); CUDA:
``max_memory_allocated``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from benchmarks.record import Key

ROOT = Path(__file__).resolve().parent.parent

Clock = Callable[[Callable[[], object]], float]
"""Runs the call and gives the seconds it took."""

LONG = 3.0
"""Seconds from which the first call counts as a measurement: what it warms up is small beside it."""

TOO_LONG = 45.0
"""Seconds from which one call must do."""

_STATUS, _MARKS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_WARM_UP_TOKENS = 256


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


class Peak(NamedTuple):
    """Bytes over the baseline, and seconds, of one call that was not warmed up."""

    bytes: int
    seconds: float


def weigh(keys: Iterable[Key], threads: int, side_by_side: int = 1) -> tuple[dict[Key, Peak], dict[str, str]]:
    """Peak memory and seconds of each key's call, a fresh process each.

    Args:
        keys: What to build and run once.
        threads: Of torch, in each process.
        side_by_side: Processes at a time; more disturb the seconds, not the bytes.

    Returns:
        Peaks by key, and reasons by title for the keys that gave none.
    """
    wanted = list(keys)
    with ThreadPoolExecutor(side_by_side) as pool:
        outcomes = list(pool.map(lambda key: _ask(key, threads), wanted))
    peaks: dict[Key, Peak] = {}
    failures = {}
    for key, outcome in zip(wanted, outcomes, strict=True):
        if isinstance(outcome, str):
            failures[f"memory of {key.level} {key.subject} at {key.size}, {key.dtype}, {key.phase}"] = outcome
        else:
            peaks[key] = outcome
    return peaks, failures


def _ask(key: Key, threads: int) -> Peak | str:
    """What the process says, or why it said nothing."""
    request = json.dumps({"key": asdict(key), "threads": threads})
    done = run_alone(["-m", "benchmarks.measuring"], threads, request)
    if done.returncode == 0:
        return Peak(*json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}; out of memory?"
    return (done.stderr.strip().splitlines() or ["no message"])[-1]


def run_alone(arguments: list[str], threads: int, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a fresh Python that finds this checkout wherever it is started, and keep what it prints.

    Args:
        arguments: Of the interpreter.
        threads: Of torch, in that process.
        stdin: Its standard input.
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": paths}
    command = [sys.executable, *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, env=environment)


def measure_peak(key: Key) -> Peak:
    """One call of what the key names, in this process, which should be fresh."""
    import torch

    from benchmarks.subjects import make_subject

    small = Key("layer", "cast", _WARM_UP_TOKENS, key.dtype, key.phase, key.device)
    warm = make_subject(key.of(size=_WARM_UP_TOKENS) if key.level in ("layer", "peers") else small)
    with warm.ready():
        warm.run()
    del warm
    base = reset_peak(key.device)
    subject = make_subject(key)
    with subject.ready():
        seconds = make_clock(key.device, torch.get_num_threads())(subject.run)
    peak = torch.cuda.max_memory_allocated() if key.device == "cuda" else read_status("VmHWM")
    return Peak(peak - base, seconds)


def read_status(field: str) -> int:
    """A field of /proc/self/status in bytes: "VmRSS", or "VmHWM", the highest resident size since the mark was reset.

    Raises:
        FileNotFoundError: Not Linux.
    """
    if not _STATUS.exists():
        raise FileNotFoundError(f"expected {_STATUS}, which Linux has; measure memory there or on CUDA")
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def reset_peak(device: str) -> int:
    """Reset the peak's mark and give the bytes in use."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc: what the warm-up left must not hide what comes
        trim(0)
    _MARKS.write_text("5")
    return read_status("VmRSS")


def main() -> None:
    """Measure the key on standard input."""
    import torch

    request = json.loads(sys.stdin.read())
    torch.set_num_threads(request["threads"])
    sys.stdout.write(json.dumps(measure_peak(Key(**request["key"]))) + "\n")


if __name__ == "__main__":
    main()
