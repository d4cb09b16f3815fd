"""Levels op, layer and block: CAST beside fused full attention over the number of tokens."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial

import torch

from benchmarks.levels import Outcome, Task
from benchmarks.memory import weigh
from benchmarks.record import Figure, Key, single_figure
from benchmarks.settings import Settings
from benchmarks.subjects import DTYPES, HEADS, VARIANTS, Subject, make_subject
from benchmarks.timing import Competitor, Spread, interleave, make_clock, make_spread

ONE_HEAD_FROM = 1 << 15
"""Tokens from which a CPU times full attention on one head."""

ROUTING_TOKENS = 16384
ROUTING_INPUTS = ("0% blank", "100% blank")
PHASES = ("forward", "training")
_MATMUL = 2048


def op_tasks(settings: Settings) -> list[Task]:
    """Attention on given queries, keys and values; routing inside the clock."""
    return [_timing_task(group, settings) for group in _groups("op", settings)]


def layer_tasks(settings: Settings) -> list[Task]:
    """The layer with its projections: time, the share of routing, peak memory, and what a matrix product reaches."""
    tasks = [_matmul_task(dtype, settings) for dtype in settings.dtypes]
    tasks += [_timing_task(group, settings) for group in _groups("layer", settings)]
    tokens = min(ROUTING_TOKENS, max(settings.sizes))
    for dtype in settings.dtypes:
        for inputs in ROUTING_INPUTS:
            key = Key("layer", "cast", tokens, dtype, device=settings.device, inputs=inputs)
            title = f"routing at {tokens:,} tokens, {dtype}, {inputs}"
            tasks.append(_timing_task([key, key.of(subject="routing")], settings, title))
    return tasks + _memory_tasks(settings)


def block_tasks(settings: Settings) -> list[Task]:
    """A CAST block beside the same block whose attention is only its projections."""
    return [_timing_task(group, settings) for group in _groups("block", settings)]


def _groups(level: str, settings: Settings) -> list[list[Key]]:
    """The competitors of each size, dtype and phase."""
    groups = []
    for size in settings.sizes:
        for dtype in settings.dtypes:
            for phase in PHASES[:1] if level != "layer" and settings.quick else PHASES:
                ours = ("cast",) if level == "block" else VARIANTS
                key = Key(level, "", size, dtype, phase, settings.device)
                groups.append([key.of(subject=name) for name in (*ours, *_rivals(level, size, settings.device))])
    return groups


def _rivals(level: str, size: int, device: str) -> tuple[str, ...]:
    if level == "block":
        return ("no-core",)
    if device == "cuda" or size < ONE_HEAD_FROM:
        return ("sdpa",)
    return ("sdpa-head", "no-core") if level == "layer" else ("sdpa-head",)


def _timing_task(keys: list[Key], settings: Settings, title: str = "") -> Task:
    first = keys[0]
    gives = [*keys, first.of(subject="sdpa")] if any(key.subject == "sdpa-head" for key in keys) else keys
    title = title or f"{first.level} at {first.size:,} tokens, {first.dtype}, {first.phase}"
    return Task(title, tuple(gives), partial(time_group, keys, settings))


def time_group(keys: Iterable[Key], settings: Settings) -> Outcome:
    """Time the subjects of some keys side by side.

    Args:
        keys: Distinct in their subjects.
        settings: For device and budgets.

    Returns:
        Figures in seconds; failures for subjects that cannot be built, such as a model of another image size.
    """
    subjects: dict[Key, Subject] = {}
    failures: dict[str, str] = {}
    for key in keys:
        try:
            subjects[key] = make_subject(key)
        except Exception as error:
            failures[f"{key.level} {key.subject} at {key.size}, {key.dtype}, {key.phase}"] = describe_failure(error)
    named: dict[str, Competitor] = {key.subject: subject for key, subject in subjects.items()}
    samples = interleave(
        named,
        make_clock(settings.device, settings.threads),
        budget=settings.budget,
        least=settings.least,
        most=settings.most,
    )
    spreads = {key: make_spread(samples[key.subject]) for key in subjects}
    figures = [_figure(key, spread) for key, spread in spreads.items()]
    return figures + _whole_from_one_head(figures), failures


def describe_failure(error: Exception) -> str:
    """Its type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _figure(key: Key, spread: Spread) -> Figure:
    return Figure(key.of(quantity="seconds"), spread.median, spread.low, spread.high, spread.count)


def _whole_from_one_head(figures: list[Figure]) -> list[Figure]:
    """Full attention of all heads: one head's core times H, and for a layer its projections."""
    by_name = {figure.key.subject: figure for figure in figures}
    head = by_name.get("sdpa-head")
    if head is None:
        return []
    rest = by_name.get("no-core")
    low, value, high = (
        HEADS * getattr(head, name) + (getattr(rest, name) if rest else 0.0) for name in ("low", "value", "high")
    )
    note = f"one head timed, times {HEADS}" + (", plus the projections" if rest else "")
    return [Figure(head.key.of(subject="sdpa"), value, low, high, 0, note)]


def _memory_tasks(settings: Settings) -> list[Task]:
    """Peak memory of the layer at every size (quick: the largest), in one dtype.

    The first on a CPU; the last on CUDA, whose fused attention wants half precision.
    """
    tasks = []
    dtype = settings.dtypes[-1 if settings.device == "cuda" else 0]
    for size in settings.sizes[-1:] if settings.quick else settings.sizes:
        for phase in PHASES:
            thin = settings.device == "cpu" and size >= ONE_HEAD_FROM
            rival = "sdpa-thin" if thin else "sdpa"
            key = Key("layer", "", size, dtype, phase, settings.device, quantity="bytes")
            ours = ("cast",) if settings.quick else VARIANTS
            keys = [key.of(subject=name) for name in (*ours, rival)]
            gives = [*keys[:-1], key.of(subject="sdpa")]
            title = f"memory of the layer at {size:,} tokens, {dtype}, {phase}"
            tasks.append(Task(title, tuple(gives), partial(_weigh_group, keys, settings)))
    return tasks


def _weigh_group(keys: list[Key], settings: Settings) -> Outcome:
    side_by_side = 1 if settings.device == "cuda" else os.cpu_count() or 1
    peaks, failures = weigh(keys, settings.threads, side_by_side)
    figures = [single_figure(key.of(quantity="bytes"), peak.bytes) for key, peak in peaks.items()]
    thin = [figure for figure in figures if figure.key.subject == "sdpa-thin"]
    note = f"a layer of one head, times {HEADS}"
    whole = [single_figure(f.key.of(subject="sdpa"), HEADS * f.value, note, repeats=0) for f in thin]
    return figures + whole, failures


def _matmul_task(dtype: str, settings: Settings) -> Task:
    key = Key("layer", "matmul", _MATMUL, dtype, device=settings.device, quantity="flops/s")
    return Task(f"matrix product, {dtype}", (key,), partial(_measure_matmul, key, settings))


def _measure_matmul(key: Key, settings: Settings) -> Outcome:
    """What a square matrix product reaches: the rate behind the floor of arithmetic."""
    sides = [torch.empty(key.size, key.size, dtype=DTYPES[key.dtype], device=key.device) for _ in range(2)]
    rivals: dict[str, Competitor] = {"matmul": Subject(torch.mm, sides, "forward")}
    samples = interleave(
        rivals, make_clock(key.device, settings.threads), budget=settings.budget / 4, least=3, most=settings.most
    )
    rates = make_spread([2 * key.size**3 / seconds for seconds in samples["matmul"]])
    return [Figure(key, rates.median, rates.low, rates.high, rates.count)], {}
