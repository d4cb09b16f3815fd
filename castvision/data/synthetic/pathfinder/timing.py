"""Images one core generates a second: ``python -m castvision.data.synthetic.pathfinder.timing --json FILE``."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

REPEATS = 5
COUNTS = {32: 2000, 64: 40, 128: 300, 256: 500}
"""Images a measurement, by size."""


def measure(img_size: int, contour_length: int, mode: str, count: int) -> dict[str, float | int | str]:
    """Generate ``REPEATS`` times ``count`` different images.

    Args:
        img_size: Height and width.
        contour_length: Paddles in a long path.
        mode: "lra" or "clean".
        count: Images a measurement.

    Returns:
        What was measured; ``images_per_core_second`` is the median over the repeats, by the CPU time of the process.

    Raises:
        ValueError: If an argument is out of range.
    """
    import numpy as np

    from castvision.data.synthetic.pathfinder.engine import make_batch
    from castvision.data.synthetic.pathfinder.spec import PathfinderSpec

    if count < 1:
        raise ValueError(f"expected count >= 1, got {count=}")
    spec = PathfinderSpec.lra(img_size, contour_length, mode)  # type: ignore[arg-type] # checked there
    make_batch(spec, 0, 2, np.arange(1))  # compile and make tables
    speeds, tries = [], []
    for repeat in range(REPEATS):
        start = time.process_time()
        batch = make_batch(spec, 0, 0, np.arange(repeat * count, (repeat + 1) * count))
        speeds.append(count / (time.process_time() - start))
        tries.append(float(batch.tries.mean()))
    return {
        "img_size": img_size,
        "contour_length": contour_length,
        "mode": mode,
        "images": count * REPEATS,
        "images_per_core_second": round(statistics.median(speeds), 1),
        "slowest_repeat": round(min(speeds), 1),
        "fastest_repeat": round(max(speeds), 1),
        "pairs_tried_per_image": round(statistics.mean(tries), 1),
    }


def describe_machine() -> dict[str, str]:
    """Processor and versions that a number belongs to."""
    import numba
    import numpy as np

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux: the platform's own word will do
    return {
        "cpu": model,
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure LRA's four sizes in both modes at n = 14, and the two shorter lengths at 32 pixels."""
    parser = argparse.ArgumentParser(prog="python -m castvision.data.synthetic.pathfinder.timing", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the results to this file (default: standard output)")
    args = parser.parse_args(argv)
    cases = [(size, 14, mode) for size in COUNTS for mode in ("lra", "clean")]
    cases += [(32, length, mode) for length in (6, 9) for mode in ("lra", "clean")]
    results = [measure(size, length, mode, COUNTS[size]) for size, length, mode in cases]
    report = {"what": "Pathfinder generator, one core, images without masks", "repeats": REPEATS}
    text = json.dumps({**report, "machine": describe_machine(), "results": results}, indent=1) + "\n"
    if args.json is None:
        sys.stdout.write(text)
        return 0
    partial = args.json.with_name(f".{args.json.name}.partial")
    partial.write_text(text)
    partial.replace(args.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
