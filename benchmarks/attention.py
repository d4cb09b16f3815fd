"""Levels op, layer, block and model: CAST beside fused full attention over tokens, and beside timm's models.

Model looks at whole models at one image size, and at a million tokens, one a pixel, through ours alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.goals import MILLION
from benchmarks.levels import Outcome, Settings, Task
from benchmarks.measuring import Competitor, interleave, make_clock, make_spread, weigh
from benchmarks.record import Key, Measurement, single_measurement
from benchmarks.subjects import DTYPES, HEADS, VARIANTS, Subject, create_model, make_subject, near_far_flops
from castvision.ops import AttentionOptions

ONE_HEAD_FROM = 1 << 15
"""Tokens from which a CPU times full attention on one head."""

ROUTING_TOKENS = 16384
ROUTING_INPUTS = ("0% blank", "100% blank")
WEIGHED, FEW_TOKENS = 5, 4096
"""Processes that weigh a layer of few tokens: its peak, some MiB, differs by a tenth from one to the next."""

PHASES = ("forward", "training")
OURS = "cast_vit_small_patch8_224"
_MATMUL = 2048


def op_tasks(settings: Settings) -> list[Task]:
    """Attention on given queries, keys and values; routing inside the clock."""
    return [_timing_task(group, settings) for group in _groups("op", settings)]


def layer_tasks(settings: Settings) -> list[Task]:
    """The layer with its projections: time, the share of routing, peak memory, and what a matrix product reaches."""
    tasks = []
    for dtype in settings.dtypes:
        key = Key("layer", "matmul", _MATMUL, dtype, device=settings.device, quantity="flops/s")
        tasks.append(Task(f"matrix product, {dtype}", (key,), partial(_measure_matmul, key, settings)))
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
        Measurements in seconds; failures for subjects that cannot be built, such as a model of another image size.
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
    measurements = [
        Measurement(key.of(quantity="seconds"), spread.median, spread.low, spread.high, spread.count)
        for key, spread in spreads.items()
    ]
    return measurements + _whole_from_one_head(measurements), failures


def describe_failure(error: Exception) -> str:
    """Its type and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"


def _whole_from_one_head(measurements: list[Measurement]) -> list[Measurement]:
    """Full attention of all heads: one head's core times H, and for a layer its projections."""
    by_name = {each.key.subject: each for each in measurements}
    head = by_name.get("sdpa-head")
    if head is None:
        return []
    rest = by_name.get("no-core")
    low, value, high = (
        HEADS * getattr(head, name) + (getattr(rest, name) if rest else 0.0) for name in ("low", "value", "high")
    )
    note = f"one head timed, times {HEADS}" + (", plus the projections" if rest else "")
    return [Measurement(head.key.of(subject="sdpa"), value, low, high, 0, note)]


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
    is_light = keys[0].level == "layer" and keys[0].size <= FEW_TOKENS
    found: dict[Key, list[float]] = {}
    failures: dict[str, str] = {}
    for _ in range(WEIGHED if is_light and not settings.quick else 1):
        peaks, failed = weigh(keys, settings.threads, side_by_side)
        failures |= failed
        for key, peak in peaks.items():
            found.setdefault(key.of(quantity="bytes"), []).append(float(peak.bytes))
    spreads = [(key, make_spread(values)) for key, values in found.items()]
    measurements = [Measurement(key, each.median, each.low, each.high, each.count) for key, each in spreads]
    return measurements + whole_from_thin(measurements), failures


def whole_from_thin(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Peak memory of full attention of all heads: that of a layer of one head times H."""
    thin = [each for each in measurements if each.key.subject == "sdpa-thin"]
    note = f"a layer of one head, times {HEADS}"
    return [single_measurement(m.key.of(subject="sdpa"), HEADS * m.value, note, repeats=0) for m in thin]


def _measure_matmul(key: Key, settings: Settings) -> Outcome:
    """What a square matrix product reaches: the rate behind the floor of arithmetic."""
    sides = [torch.empty(key.size, key.size, dtype=DTYPES[key.dtype], device=key.device) for _ in range(2)]
    rivals: dict[str, Competitor] = {"matmul": Subject(torch.mm, sides, "forward")}
    samples = interleave(
        rivals, make_clock(key.device, settings.threads), budget=settings.budget / 4, least=3, most=settings.most
    )
    rates = make_spread([2 * key.size**3 / seconds for seconds in samples["matmul"]])
    return [Measurement(key, rates.median, rates.low, rates.high, rates.count)], {}


def model_tasks(settings: Settings) -> list[Task]:
    """Arithmetic, latency and peak memory of every model on one image; a million tokens unless the run is quick."""
    tasks = []
    for dtype in settings.dtypes:
        names = (OURS, *(name for name in settings.peers if name != OURS))
        keys = [Key("model", name, settings.img_size, dtype, device=settings.device) for name in names]
        about = f"of {len(keys)} models at {settings.img_size} px, {dtype}"
        counts = tuple(key.of(quantity=quantity) for key in keys for quantity in ("flops", "parameters"))
        rates = tuple(key.of(quantity=quantity) for key in keys for quantity in ("seconds", "images/s"))
        peaks = tuple(key.of(quantity="bytes") for key in keys)
        tasks.append(Task(f"arithmetic {about}", counts, partial(_count_all, keys)))
        tasks.append(Task(f"latency {about}", rates, partial(_time_all, keys, settings)))
        if not settings.quick:
            tasks.append(Task(f"memory {about}", peaks, partial(_weigh_group, keys, settings)))
    return tasks if settings.quick else [*tasks, *_million_tasks(settings)]


def count_flops(key: Key) -> tuple[int, int]:
    """Floating-point operations of one forward and the number of parameters, without computing anything.

    torch's counter does not know the CPU's fused attention, and what ours does depends on the data: full attention is
    written out, ours is counted by formula.
    """
    model = create_model(key.subject, key.size).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        image = torch.empty(1, model.default_cfg["input_size"][0], key.size, key.size)
        with FlopCounterMode(display=False) as counter, _ours_by_formula() as counted:
            model(image)
    return counter.get_total_flops() + sum(counted), sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _ours_by_formula() -> Iterator[list[int]]:
    """Within, our attention gives its values back; the list takes the operations that it would have done."""
    counted: list[int] = []

    def count(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        options: AttentionOptions,
        grid: list[int],
        prefix: int,
        *rest: Any,
        **more: Any,
    ) -> tuple[Tensor, None]:
        batch, _, heads, head_dim = q.shape
        counted.append(batch * near_far_flops(grid[0], grid[1], heads * head_dim, heads, options, prefix))
        return v, None

    layers = ("cast_attention", "converted_attention")
    with ExitStack() as patches:
        for layer in layers:
            patches.enter_context(mock.patch(f"castvision.layers.{layer}.cast_attention", count))
        yield counted


def _count_all(keys: list[Key]) -> Outcome:
    measurements: list[Measurement] = []
    failures = {}
    for key in keys:
        try:
            flops, parameters = count_flops(key)
        except Exception as error:
            failures[f"arithmetic of {key.subject} at {key.size}"] = describe_failure(error)
            continue
        measurements.append(single_measurement(key.of(quantity="flops"), flops))
        measurements.append(single_measurement(key.of(quantity="parameters"), parameters))
    return measurements, failures


def _time_all(keys: list[Key], settings: Settings) -> Outcome:
    """Latency, and throughput one image at a time."""
    times, failures = time_group(keys, settings)
    rates = [Measurement(t.key.of(quantity="images/s"), 1 / t.value, 1 / t.high, 1 / t.low, t.repeats) for t in times]
    return times + rates, failures


def _million_tasks(settings: Settings) -> list[Task]:
    """One image of 1024 × 1024 with one token a pixel: peak and time of one call, on all cores."""
    key = MILLION.of(device=settings.device)
    if key.dtype not in settings.dtypes:
        return []
    title = f"a million tokens, {key.phase} (takes minutes on a CPU)"
    return [Task(title, (key, key.of(quantity="seconds")), partial(_weigh_million, key))]


def _weigh_million(key: Key) -> Outcome:
    threads = os.cpu_count() or 1
    peaks, failures = weigh([key], threads)
    note = f"one call, {threads} threads"
    measurements = [
        single_measurement(key.of(quantity=quantity), value, note)
        for peak in peaks.values()
        for quantity, value in (("bytes", peak.bytes), ("seconds", peak.seconds))
    ]
    return measurements, failures
