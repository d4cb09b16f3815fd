"""Level data: images a second of the Pathfinder generator, on one core, in two processes and through a loader."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.pool import Pool

import numpy as np
from torch.utils.data import DataLoader

from benchmarks.levels import Outcome, Task
from benchmarks.record import Figure, Key
from benchmarks.settings import Settings
from benchmarks.timing import Competitor, interleave, make_spread, process_clock, wall_clock
from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec
from castvision.data.synthetic.pathfinder.engine import make_batch
from castvision.data.synthetic.pathfinder.timing import COUNTS

CONTOUR_LENGTH = 14
REPEATS = 5
_SHARED_SIZES = (64, 128)
_SHARED_SECONDS = 0.4
_WORKERS = (0, 1, 2)
_LOADED_SIZES = (32, 128)
_BATCH, _BATCHES = 64, 12


def data_tasks(settings: Settings) -> list[Task]:
    """The generator at LRA's sizes, then what processes and loaders add."""
    keys = tuple(Key("data", "generator", size, quantity="images/s") for size in COUNTS)
    tasks = [Task("Pathfinder generator, one core", keys, partial(_measure_generator, keys))]
    base = [Key("data", "", size, quantity="images/s") for size in _SHARED_SIZES]
    pairs = [(key.of(subject="generator, 1 process"), key.of(subject="generator, 2 processes")) for key in base]
    both = tuple(key for pair in pairs for key in pair)
    tasks.append(Task("Pathfinder generator in two processes", both, partial(_measure_pairs, pairs)))
    for size in () if settings.quick else _LOADED_SIZES:
        several = tuple(Key("data", f"loader, {n} workers", size, quantity="images/s") for n in _WORKERS)
        tasks.append(Task(f"Pathfinder loader, {size} px", several, partial(_measure_loaders, several)))
    return tasks


class Generator:
    """Makes ``count`` images that it has not made before."""

    def __init__(self, size: int, count: int) -> None:
        self.spec, self.count = PathfinderSpec.lra(size, CONTOUR_LENGTH), count
        self.starts = itertools.count(0, count)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Choose the next images."""
        start = next(self.starts)
        self.indices = np.arange(start, start + self.count)
        yield

    def run(self) -> None:
        """Make them."""
        make_batch(self.spec, 0, 0, self.indices)


class PoolJob:
    """``jobs`` batches of ``count`` images at once in a pool of as many processes."""

    def __init__(self, pool: Pool, size: int, jobs: int, count: int) -> None:
        self.pool, self.size, self.count, self.jobs = pool, size, count, jobs
        self.starts = itertools.count(0, count)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Choose the next images."""
        self.work = [(self.size, next(self.starts), self.count) for _ in range(self.jobs)]
        yield

    def run(self) -> None:
        """Make them, each process one batch."""
        self.pool.map(_generate, self.work, chunksize=1)


class LoaderJob:
    """Batches from a loader whose workers have started."""

    def __init__(self, size: int, workers: int) -> None:
        self.loader = DataLoader(
            PathfinderDataset(PathfinderSpec.lra(size, CONTOUR_LENGTH), length=1 << 30),
            batch_size=_BATCH, num_workers=workers, multiprocessing_context="spawn" if workers else None,
        )  # fmt: skip
        self.batches = iter(self.loader)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Nothing to prepare: the workers run ahead, as they do in training."""
        yield

    def run(self) -> None:
        """Take some batches."""
        for _ in range(_BATCHES):
            next(self.batches)


def _measure_generator(keys: tuple[Key, ...]) -> Outcome:
    rivals: dict[str, Competitor] = {str(key.size): Generator(key.size, COUNTS[key.size]) for key in keys}
    samples = interleave(rivals, process_clock, budget=0.0, least=REPEATS, most=REPEATS)
    return [_rate(key, COUNTS[key.size], samples[str(key.size)]) for key in keys], {}


def _measure_pairs(pairs: list[tuple[Key, Key]]) -> Outcome:
    """One and two processes in turn, by the wall; the same two processes for all sizes."""
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        return [figure for one, two in pairs for figure in _measure_pair(pool, one, two)], {}


def _measure_pair(pool: Pool, one: Key, two: Key) -> list[Figure]:
    count = _count_for(one.size)
    single, double = PoolJob(pool, one.size, 1, count), PoolJob(pool, two.size, 2, count)
    for _ in range(2):  # both processes compile and make their tables
        interleave({"": double}, wall_clock, budget=0.0, least=1, most=1)
    rivals: dict[str, Competitor] = {one.subject: single, two.subject: double}
    samples = interleave(rivals, wall_clock, budget=0.0, least=REPEATS, most=REPEATS)
    return [_rate(one, count, samples[one.subject]), _rate(two, 2 * count, samples[two.subject])]


def _measure_loaders(keys: tuple[Key, ...]) -> Outcome:
    rivals: dict[str, Competitor] = {
        key.subject: LoaderJob(key.size, workers) for key, workers in zip(keys, _WORKERS, strict=True)
    }
    samples = {
        name: interleave({name: job}, wall_clock, budget=0.0, least=REPEATS, most=REPEATS)[name]
        for name, job in rivals.items()
    }
    return [_rate(key, _BATCH * _BATCHES, samples[key.subject]) for key in keys], {}


def _count_for(size: int) -> int:
    """Images that take one core about ``_SHARED_SECONDS``."""
    generator = Generator(size, COUNTS[size])
    with generator.ready():
        generator.run()
    with generator.ready():
        start = time.process_time()
        generator.run()
    return max(1, round(COUNTS[size] * _SHARED_SECONDS / (time.process_time() - start)))


def _generate(job: tuple[int, int, int]) -> None:
    size, start, count = job
    make_batch(PathfinderSpec.lra(size, CONTOUR_LENGTH), 0, 0, np.arange(start, start + count))


def _rate(key: Key, count: int, seconds: list[float]) -> Figure:
    spread = make_spread([count / sample for sample in seconds])
    return Figure(key, spread.median, spread.low, spread.high, spread.count)
