"""The levels: what can be measured, by the word of the command line, and the choices of a run.

A level is a depth at which attention is looked at: the operator, the layer around it, the block, the model, the data
that feed it, the prediction of a large image, and the layer again beside other papers'. Each gives the tasks of a run,
and a task gives measurements.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.record import Key, Measurement

LEVELS: dict[str, str] = {
    "op": "benchmarks.attention:op_tasks",
    "layer": "benchmarks.attention:layer_tasks",
    "block": "benchmarks.attention:block_tasks",
    "model": "benchmarks.attention:model_tasks",
    "data": "benchmarks.generators:data_tasks",
    "tiled": "benchmarks.tiled:tiled_tasks",
    "peers": "benchmarks.peers:peer_tasks",
}
"""Function that makes a level's tasks from the settings, by the level's name; imported when the level runs."""

UNASKED = tuple(level for level in LEVELS if level not in ("tiled", "peers"))
"""Those of a run that names none: the others take their time."""

SIZES = (256, 1024, 4096, 16384, 65536)
QUICK_LIMIT = 4096
"""Most tokens under ``--quick``."""


@dataclass(frozen=True)
class Settings:
    """The choices of a run.

    Attributes:
        levels: Names of :data:`LEVELS`.
        sizes: Tokens N, ascending, for op, layer, block and peers.
        dtypes: Of "fp32" and "bf16".
        device: "cpu" or "cuda".
        threads: Of torch.
        img_size: Pixels a side, for the models.
        peers: Models to set beside ours, by timm's names.
        quick: A minute instead of an hour.
        check: Measure what the goals need, nothing else.
    """

    levels: tuple[str, ...]
    sizes: tuple[int, ...] = SIZES
    dtypes: tuple[str, ...] = ("fp32",)
    device: str = "cpu"
    threads: int = 1
    img_size: int = 1024
    peers: tuple[str, ...] = ()
    quick: bool = False
    check: bool = False

    @property
    def clock(self) -> str:
        """What seconds are, for the reader."""
        if self.device == "cuda":
            return "CUDA events"
        return "CPU time" if self.threads == 1 else "wall time"

    @property
    def budget(self) -> float:
        """Seconds of repeats a competitor may take in a group."""
        return 0.4 if self.quick else 5.0 if self.check else 10.0

    @property
    def least(self) -> int:
        """Fewest repeats of a competitor whose single call is within reason."""
        return 2 if self.quick else 3

    @property
    def most(self) -> int:
        """Most repeats."""
        return 5 if self.quick else 25


Outcome = tuple[list[Measurement], Mapping[str, str]]
"""Measurements, and reasons by title for what gave none."""


@dataclass(frozen=True)
class Task:
    """One group of measurements that are made together.

    Attributes:
        title: For the progress line.
        keys: What it measures; a task whose keys are all there is skipped when a run goes on.
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
