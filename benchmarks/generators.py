"""Level data: images a second of the Pathfinder generator, on one core, in two processes and through a loader.

``python -m benchmarks.generators pathfinder`` (or ``dense``) measures every size and task by itself: images that one
core makes a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader

from benchmarks.levels import Outcome, Settings, Task
from benchmarks.measuring import Clock, Spread, interleave, make_spread, process_clock, wall_clock
from benchmarks.record import Key, Measurement, describe_processor
from castvision.data.synthetic import DenseDataset, MazeDataset, PathfinderSegDataset, RegionDataset
from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec
from castvision.data.synthetic.pathfinder.engine import make_batch
from castvision.files import draft

CONTOUR_LENGTH = 14
REPEATS = 5
COUNTS = {32: 2000, 64: 40, 128: 300, 256: 500}
"""Pathfinder images a measurement, by size."""

_SHARED_SIZES = (64, 128)
_SHARED_SECONDS = 0.4  # of one core, for the images of a measurement
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


class Maker:
    """A call that makes ``count`` samples, each time of other indices.

    Args:
        make: Makes the samples of some indices.
        count: How many.
    """

    def __init__(self, make: Callable[[range], object], count: int) -> None:
        self.make, self.count = make, count
        self.starts = itertools.count(0, count)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Choose the next indices."""
        start = next(self.starts)
        self.indices = range(start, start + self.count)
        yield

    def run(self) -> None:
        """Make them."""
        self.make(self.indices)


def make_generator(size: int, count: int) -> Maker:
    """The Pathfinder generator, on one core."""
    return Maker(partial(_generate, size), count)


def make_pooled(pool: Pool, size: int, jobs: int, count: int) -> Maker:
    """The Pathfinder generator in a pool of processes: ``jobs`` batches of ``count`` images at once."""

    def make(indices: range) -> None:
        parts = [(size, indices[job * count : (job + 1) * count]) for job in range(jobs)]
        pool.starmap(_generate, parts, chunksize=1)

    return Maker(make, jobs * count)


def make_loader(size: int, workers: int) -> Maker:
    """Batches from a loader whose workers have started and run ahead, as they do in training."""
    loader = DataLoader(
        PathfinderDataset(PathfinderSpec.lra(size, CONTOUR_LENGTH), length=1 << 30),
        batch_size=_BATCH, num_workers=workers, multiprocessing_context="spawn" if workers else None,
    )  # fmt: skip
    batches = iter(loader)
    return Maker(lambda indices: [next(batches) for _ in range(_BATCHES)], _BATCH * _BATCHES)


def _generate(size: int, indices: range) -> None:
    make_batch(PathfinderSpec.lra(size, CONTOUR_LENGTH), 0, 0, np.array(indices))


def _repeat(makers: Mapping[str, Maker], clock: Clock) -> dict[str, Spread]:
    """Samples a second of some makers, which take turns."""
    samples = interleave(makers, clock, budget=0.0, least=REPEATS, most=REPEATS)
    return {name: make_spread([makers[name].count / seconds for seconds in taken]) for name, taken in samples.items()}


def _rates(keys: Iterable[Key], spreads: Mapping[str, Spread]) -> list[Measurement]:
    """Measurements from spreads by name: the subject, or where that is the same for all, the size."""
    found = [(key, spreads.get(key.subject) or spreads[str(key.size)]) for key in keys]
    return [Measurement(key, spread.median, spread.low, spread.high, spread.count) for key, spread in found]


def _measure_generator(keys: tuple[Key, ...]) -> Outcome:
    makers = {str(key.size): make_generator(key.size, COUNTS[key.size]) for key in keys}
    return _rates(keys, _repeat(makers, process_clock)), {}


def _measure_pairs(pairs: list[tuple[Key, Key]]) -> Outcome:
    """One and two processes in turn, by the wall; the same two processes for all sizes."""
    measurements = []
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for one, two in pairs:
            generator = make_generator(one.size, COUNTS[one.size])
            for _ in range(2):  # the first call compiles
                with generator.ready():
                    seconds = process_clock(generator.run)
            count = max(1, round(generator.count * _SHARED_SECONDS / seconds))
            double = make_pooled(pool, two.size, 2, count)
            makers = {one.subject: make_pooled(pool, one.size, 1, count), two.subject: double}
            for _ in range(2):  # both processes compile and make their tables
                interleave({"": double}, wall_clock, budget=0.0, least=1, most=1)
            measurements += _rates((one, two), _repeat(makers, wall_clock))
    return measurements, {}


def _measure_loaders(keys: tuple[Key, ...]) -> Outcome:
    """Each loader by itself: the workers of another would run ahead meanwhile."""
    spreads: dict[str, Spread] = {}
    for key, workers in zip(keys, _WORKERS, strict=True):
        spreads |= _repeat({key.subject: make_loader(key.size, workers)}, wall_clock)
    return _rates(keys, spreads), {}


def core_speeds(make: Callable[[range], object], count: int) -> list[float]:
    """Make ``REPEATS`` times ``count`` different samples.

    Args:
        make: Makes the samples of some indices.
        count: Samples a measurement.

    Returns:
        Samples a second of the process's CPU time, each measurement's.

    Raises:
        ValueError: ``count`` < 1.
    """
    if count < 1:
        raise ValueError(f"expected count >= 1, got {count=}")
    make(range(1))  # compile and make tables
    parts = [range(repeat * count, (repeat + 1) * count) for repeat in range(REPEATS)]
    return [count / process_clock(partial(make, part)) for part in parts]


def measure_pathfinder(img_size: int, contour_length: int, mode: str, count: int) -> dict[str, float | int | str]:
    """Speed of the Pathfinder generator, images without masks.

    Args:
        img_size: Height and width.
        contour_length: Paddles in a long path.
        mode: "lra" or "clean".
        count: Images a measurement.

    Returns:
        What was measured; ``images_per_core_second`` is the median over the repeats.

    Raises:
        ValueError: If an argument is out of range.
    """
    spec = PathfinderSpec.lra(img_size, contour_length, mode)  # type: ignore[arg-type] # checked there
    tries: list[float] = []

    def make(indices: range) -> None:
        tries.append(float(make_batch(spec, 0, 0, np.array(indices)).tries.mean()))

    speeds = core_speeds(make, count)
    return {
        "img_size": img_size,
        "contour_length": contour_length,
        "mode": mode,
        "images": count * REPEATS,
        "images_per_core_second": round(statistics.median(speeds), 1),
        "slowest_repeat": round(min(speeds), 1),
        "fastest_repeat": round(max(speeds), 1),
        "pairs_tried_per_image": round(statistics.mean(tries[1:]), 1),
    }


def measure_dense(name: str, dataset: DenseDataset, count: int) -> dict[str, float | int | str]:
    """Speed of a dense task, images with their targets.

    Args:
        name: Of the task and its options.
        dataset: At least ``REPEATS * count`` images long.
        count: Images a measurement.

    Returns:
        Medians over the repeats: ``generated`` counts 8-bit images and targets, ``as_tensors`` what a loader's worker
        does, float32 images and int64 targets.

    Raises:
        ValueError: ``count`` < 1.
    """
    generated = core_speeds(lambda indices: dataset.make_batch(np.array(indices)), count)
    return {
        "task": name,
        "img_size": dataset.img_size,
        "images": count * REPEATS,
        "generated_per_core_second": round(statistics.median(generated), 1),
        "as_tensors_per_core_second": round(statistics.median(core_speeds(dataset.__getitems__, count)), 1),
    }


def measure_all_pathfinder() -> list[dict[str, float | int | str]]:
    """LRA's four sizes in both modes at n = 14, and the two shorter lengths at 32 pixels."""
    cases = [(size, CONTOUR_LENGTH, mode) for size in COUNTS for mode in ("lra", "clean")]
    cases += [(32, length, mode) for length in (6, 9) for mode in ("lra", "clean")]
    return [measure_pathfinder(size, length, mode, COUNTS[size]) for size, length, mode in cases]


def measure_all_dense() -> list[dict[str, float | int | str]]:
    """Every dense task at 256, 512, 1024 and 2048 pixels."""
    results = []
    for size, count in ((256, 40), (512, 20), (1024, 8), (2048, 4)):
        cell = 8 if size == 2048 else 4
        results.append(measure_dense(f"maze, cells of {cell} pixels", MazeDataset(size, cell), 2 * count))
        results.append(measure_dense("region", RegionDataset(size), count))
        for form in ("three-class", "one-dot"):
            dataset = PathfinderSegDataset(size, form)
            name = f"Pathfinder, {form}, {dataset.spec.contour_length} paddles"
            results.append(measure_dense(name, dataset, count))
    return results


_REPORTS = {
    "pathfinder": ("Pathfinder generator, one core, images without masks", measure_all_pathfinder),
    "dense": ("dense tasks, one core of a shared machine", measure_all_dense),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the Pathfinder generator or the dense tasks, on one core."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.generators", description=main.__doc__)
    parser.add_argument("what", choices=_REPORTS, help="what to measure")
    parser.add_argument("--json", type=Path, help="write the results to this file (default: standard output)")
    args = parser.parse_args(argv)
    what, measure = _REPORTS[args.what]
    report = {"what": what, "repeats": REPEATS, "machine": describe_processor(), "results": measure()}
    text = json.dumps(report, indent=1) + "\n"
    if args.json is None:
        sys.stdout.write(text)
    else:
        with draft(args.json) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
