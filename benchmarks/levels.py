"""The registry of levels: each gives the tasks of a run, and a task gives figures."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.record import Figure, Key
from benchmarks.settings import Settings

Outcome = tuple[list[Figure], Mapping[str, str]]
"""Figures, and reasons by title for what gave none."""

LEVELS: dict[str, str] = {
    "op": "benchmarks.attention_levels:op_tasks",
    "layer": "benchmarks.attention_levels:layer_tasks",
    "block": "benchmarks.attention_levels:block_tasks",
    "model": "benchmarks.model_level:model_tasks",
    "data": "benchmarks.data_level:data_tasks",
    "tiled": "benchmarks.tiled_level:tiled_tasks",
}
"""Function that makes a level's tasks from the settings, by the level's name; imported when the level runs."""


@dataclass(frozen=True)
class Task:
    """One group of figures that are measured together.

    Attributes:
        title: For the progress line.
        keys: What it gives; a task whose keys are all there is skipped when a run goes on.
        measure: Does it.
    """

    title: str
    keys: tuple[Key, ...]
    measure: Callable[[], Outcome]


def make_tasks(settings: Settings) -> list[Task]:
    """The tasks of all chosen levels, in order."""
    tasks: list[Task] = []
    for level in settings.levels:
        module, _, function = LEVELS[level].partition(":")
        tasks += getattr(importlib.import_module(module), function)(settings)
    return tasks
