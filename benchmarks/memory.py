"""Peak memory of one call in a fresh process: ``python -m benchmarks.memory`` reads a key, gives a figure.

The baseline is taken after the imports and a small warm-up, before anything of the measured size exists: weights,
inputs and outputs count, on both sides of a ratio. CPU: resident memory from /proc/self/status (VmHWM, its mark reset);
CUDA: ``max_memory_allocated``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from benchmarks.record import Key

_STATUS, _MARKS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_WARM_UP_TOKENS = 256


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
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory"],
        input=json.dumps({"key": asdict(key), "threads": threads}),
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode == 0:
        return Peak(*json.loads(done.stdout.splitlines()[-1]))
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}; out of memory?"
    return (done.stderr.strip().splitlines() or ["no message"])[-1]


def measure_peak(key: Key) -> Peak:
    """One call of what the key names, in this process, which should be fresh."""
    import torch

    from benchmarks.subjects import make_subject
    from benchmarks.timing import make_clock

    small = Key("layer", "cast", _WARM_UP_TOKENS, key.dtype, key.phase, key.device)
    warm = make_subject(key.of(size=_WARM_UP_TOKENS) if key.level == "layer" else small)
    with warm.ready():
        warm.run()
    del warm
    base = _start(key.device)
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


def _start(device: str) -> int:
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
