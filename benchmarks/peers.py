"""Level peers: the layers of other papers' attention beside near and far and full attention, over tokens.

Every one as it comes, with both projections. VECA and joint tokens have their registers beside the N tokens.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from benchmarks.attention import ONE_HEAD_FROM, PHASES, time_group, whole_from_thin
from benchmarks.levels import Outcome, Settings, Task
from benchmarks.measuring import weigh
from benchmarks.record import Key, single_measurement
from benchmarks.report import format_quantity
from castvision.peers import PEERS

TRAINING_UP_TO = 1 << 14
"""Tokens up to which a backward is run too: what all of them save fills a machine's memory beyond."""


def peer_tasks(settings: Settings) -> list[Task]:
    """Time, then peak memory, of every layer at every size, in the first dtype."""
    tasks = []
    for size in settings.sizes:
        for phase in PHASES if size <= TRAINING_UP_TO else PHASES[:1]:
            thin = settings.device == "cpu" and size >= ONE_HEAD_FROM
            key = Key("peers", "", size, settings.dtypes[0], phase, settings.device)
            ours = [key.of(subject=name) for name in ("cast", "cast-anchors", "windows", *PEERS)]
            title = f"at {size:,} tokens, {key.dtype}, {phase}"
            full = key.of(subject="sdpa")
            timed = [*ours, *(key.of(subject=name) for name in (("sdpa-head", "no-core") if thin else ("sdpa",)))]
            tasks.append(Task(f"peers {title}", (*ours, full), partial(time_group, timed, settings)))
            weighed = [each.of(quantity="bytes") for each in (*ours, key.of(subject="sdpa-thin" if thin else "sdpa"))]
            gives = (*weighed[:-1], full.of(quantity="bytes"))
            tasks.append(Task(f"memory of peers {title}", gives, partial(_weigh_all, weighed, settings)))
    return tasks


def _weigh_all(keys: list[Key], settings: Settings) -> Outcome:
    peaks, failures = weigh(keys, settings.threads, 1 if settings.device == "cuda" else os.cpu_count() or 1)
    measurements = [single_measurement(key, peak.bytes) for key, peak in peaks.items()]
    return measurements + whole_from_thin(measurements), failures


def make_table(figures: Sequence[Mapping[str, Any]], quantity: str) -> str:
    """Markdown of a finished run: full attention in units, the others as its multiples.

    Args:
        figures: Of ``benchmark.json``.
        quantity: "seconds": how many times faster, forward / forward and backward; "bytes": share of its memory.
    """
    values = {
        (each["key"]["subject"], each["key"]["size"], each["key"]["phase"]): each["value"]
        for each in figures
        if each["key"]["level"] == "peers" and each["key"]["quantity"] == quantity
    }
    sizes = sorted({size for _, size, _ in values})
    subjects = [name for name in dict.fromkeys(name for name, _, _ in values) if not name.startswith("sdpa-")]

    def cell(subject: str, size: int, phase: str) -> str:
        value, full = values.get((subject, size, phase)), values.get(("sdpa", size, phase))
        if value is None or full is None:
            return "–"
        if subject == "sdpa":
            return format_quantity(value, quantity)
        return f"{full / value:.2g}" if quantity == "seconds" else f"{value / full:.2f}"

    lines = ["| | " + " | ".join(f"{size:,}" for size in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    for name in ("sdpa", *(each for each in subjects if each not in ("sdpa", "no-core"))):
        cells = (" / ".join(cell(name, size, phase) for phase in PHASES) for size in sizes)
        lines.append(f"| {_NAMES.get(name, f'`{name}`')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


_NAMES = {
    "sdpa": "full attention", "cast": "**near and far**", "cast-anchors": "**near and far, 64 anchors**",
    "windows": "windows alone",
}  # fmt: skip
