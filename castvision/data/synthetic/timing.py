"""Images of dense tasks one core makes a second: ``python -m castvision.data.synthetic.timing --json FILE``."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING

from castvision.data.synthetic.pathfinder.timing import REPEATS, describe_machine

if TYPE_CHECKING:
    from castvision.data.synthetic.dataset import DenseDataset


def measure(name: str, dataset: DenseDataset, count: int) -> dict[str, float | int | str]:
    """Generate ``REPEATS`` times ``count`` different images with their targets, and again as tensors.

    Args:
        name: Of the task and its options.
        dataset: At least ``REPEATS * count`` images long.
        count: Images a measurement.

    Returns:
        Images a second of the process's CPU time, medians over the repeats: ``generated`` counts 8-bit images and
        targets, ``as_tensors`` what a loader's worker does, float32 images and int64 targets.

    Raises:
        ValueError: ``count`` < 1.
    """
    import numpy as np

    if count < 1:
        raise ValueError(f"expected count >= 1, got {count=}")
    dataset.make_batch(np.arange(1))  # compile and make tables
    parts = [np.arange(repeat * count, (repeat + 1) * count) for repeat in range(REPEATS)]
    return {
        "task": name,
        "img_size": dataset.img_size,
        "images": count * REPEATS,
        "generated_per_core_second": _median(parts, dataset.make_batch),
        "as_tensors_per_core_second": _median([part.tolist() for part in parts], dataset.__getitems__),
    }


def _median(parts: Sequence[Sized], make: Callable[..., object]) -> float:
    speeds = []
    for part in parts:
        start = time.process_time()
        make(part)
        speeds.append(len(part) / (time.process_time() - start))
    return round(statistics.median(speeds), 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every task at 256, 512, 1024 and 2048 pixels."""
    parser = argparse.ArgumentParser(prog="python -m castvision.data.synthetic.timing", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results to this file (default: standard output)")
    args = parser.parse_args(argv)
    from castvision.data.synthetic import MazeDataset, PathfinderSegDataset, RegionDataset

    results = []
    for size, count in ((256, 40), (512, 20), (1024, 8), (2048, 4)):
        cell = 8 if size == 2048 else 4
        results.append(measure(f"maze, cells of {cell} pixels", MazeDataset(size, cell), 2 * count))
        results.append(measure("region", RegionDataset(size), count))
        for form in ("three-class", "one-dot"):
            dataset = PathfinderSegDataset(size, form)
            name = f"Pathfinder, {form}, {dataset.spec.contour_length} paddles"
            results.append(measure(name, dataset, count))
    report = {"what": "dense tasks, one core of a shared machine", "repeats": REPEATS, "machine": describe_machine()}
    text = json.dumps({**report, "results": results}, indent=1) + "\n"
    if args.json is None:
        sys.stdout.write(text)
        return 0
    partial = args.json.with_name(f".{args.json.name}.partial")
    partial.write_text(text)
    partial.replace(args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
