#!/usr/bin/env python
"""Run what is missing of the experiments in results/, or render their tables and figures.

    python tools/experiment.py run                    all that has no row yet, one run after the other
    python tools/experiment.py run join --budget 2h   those of one experiment, for two hours; then start it again
    python tools/experiment.py run --list             what is missing
    python tools/experiment.py run --match '*-images-0'  only runs of such names
    python tools/experiment.py render                 results/README.md and its figures, from the committed rows

It may be stopped or killed at any time: a finished run is a row in results/rows and never run again, an unfinished one
goes on from its last checkpoint in runs/experiments. Started twice, two processes share the runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # works without an installation
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so that seconds of the processor mean the same in every row

_UNITS = {"s": 1, "m": 60, "h": 3600}


def parse_seconds(text: str) -> float:
    """Seconds from "90", "90s", "15m" or "2h"."""
    number, unit = (text[:-1], _UNITS[text[-1]]) if text[-1:] in _UNITS else (text, 1)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, or a number with s, m or h, such as 2h; got {text!r}")
    return seconds


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "render"))
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help="to run (default: all)")
    parser.add_argument("--match", default="*", metavar="PATTERN", help="only runs of such names, as --list shows them")
    parser.add_argument("--list", action="store_true", help="run nothing; say what is missing")
    parser.add_argument(
        "--budget", type=parse_seconds, metavar="TIME", help="by the clock: 90s, 15m, 2h (default: none)"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "results", metavar="DIR", help="(default: results)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/experiments"), metavar="DIR", help="checkpoints (default: %(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """0 done, 1 a run failed, 2 wrong arguments or files, 130 after Ctrl-C, 143 after SIGTERM."""
    arguments = build_parser().parse_args(argv)
    from benchmarks.experiments.definition import load_experiments
    from benchmarks.experiments.rows import Rows

    try:
        rows = Rows(arguments.results)
        if arguments.command == "render":
            if arguments.experiments or arguments.list or arguments.budget is not None or arguments.match != "*":
                raise ValueError("render takes all rows: expected no experiments, --match, --list or --budget")
            from benchmarks.experiments.page import render

            print(render(arguments.results))
            return 0
        experiments = load_experiments(arguments.results, arguments.experiments)
        from benchmarks.experiments.running import Budget, missing_runs, run_all

        missing = missing_runs(experiments, rows, arguments.match)
        if arguments.list:
            for run in missing:
                row = rows.find(run)
                remark = "" if row is None else f" ({row['images']:,} images so far)"
                print(f"{run.key}{', has a row of another definition' if rows.is_outdated(run) else remark}")
            return 0

        def tell(line: str) -> None:
            print(f"experiment.py: {line}", flush=True)

        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        return int(bool(run_all(missing, rows, arguments.runs, Budget(arguments.budget), tell)))
    except KeyboardInterrupt:
        print("experiment.py: stopped; the same command goes on", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, OSError) as error:
        print(f"experiment.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
