"""Level model: ours beside timm's at one image size, and a million tokens, one a pixel, through ours alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.arithmetic import near_far_flops
from benchmarks.attention_levels import describe_failure, time_group
from benchmarks.goals import MILLION
from benchmarks.levels import Outcome, Task
from benchmarks.memory import weigh
from benchmarks.record import Figure, Key, single_figure
from benchmarks.settings import Settings
from benchmarks.subjects import create_model
from castvision.ops import AttentionOptions

OURS = "cast_vit_small_patch8_224"


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
            tasks.append(Task(f"memory {about}", peaks, partial(_weigh_all, keys, settings)))
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
        q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, grid: list[int], prefix: int, *rest: Any
    ) -> tuple[Tensor, None]:
        batch, _, heads, head_dim = q.shape
        counted.append(batch * near_far_flops(grid[0], grid[1], heads * head_dim, heads, options, prefix))
        return v, None

    with mock.patch("castvision.layers.cast_attention.cast_attention", count):
        yield counted


def _count_all(keys: list[Key]) -> Outcome:
    figures: list[Figure] = []
    failures = {}
    for key in keys:
        try:
            flops, parameters = count_flops(key)
        except Exception as error:
            failures[f"arithmetic of {key.subject} at {key.size}"] = describe_failure(error)
            continue
        figures.append(single_figure(key.of(quantity="flops"), flops))
        figures.append(single_figure(key.of(quantity="parameters"), parameters))
    return figures, failures


def _time_all(keys: list[Key], settings: Settings) -> Outcome:
    """Latency, and throughput one image at a time."""
    figures, failures = time_group(keys, settings)
    rates = [Figure(f.key.of(quantity="images/s"), 1 / f.value, 1 / f.high, 1 / f.low, f.repeats) for f in figures]
    return figures + rates, failures


def _weigh_all(keys: list[Key], settings: Settings) -> Outcome:
    side_by_side = 1 if settings.device == "cuda" else os.cpu_count() or 1
    peaks, failures = weigh(keys, settings.threads, side_by_side)
    return [single_figure(key.of(quantity="bytes"), peak.bytes) for key, peak in peaks.items()], failures


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
    figures = [
        single_figure(key.of(quantity=quantity), value, note)
        for peak in peaks.values()
        for quantity, value in (("bytes", peak.bytes), ("seconds", peak.seconds))
    ]
    return figures, failures
