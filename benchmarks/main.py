"""Measure speed and memory on this machine, side by side with full attention and timm's models."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.levels import LEVELS, QUICK_LIMIT, SIZES, UNASKED, Settings, Task, make_tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.goals import Goal
    from benchmarks.record import Results

PEERS = (
    "vit_small_patch8_224", "vit_small_patch16_224", "swinv2_small_window16_256", "hiera_small_224",
    "xcit_small_12_p8_224", "maxvit_small_tf_512", "convnext_small", "mambaout_small",
)  # fmt: skip
QUICK_PEERS = ("vit_small_patch8_224",)
QUICK_IMG_SIZE = 256
APART = {"fidelity": "benchmarks.fidelity.main", "heads": "benchmarks.fidelity.heads"}
"""What measures quality on pretrained weights, not speed: modules with a command line of their own, by first word."""

_PEERS_HELP = f"timm's names, of ViTs also NAME+near_far, converted (default: {' '.join(PEERS)})"
_EPILOG = f"""\
A full run writes benchmark.json and benchmark.png to the output folder; a run that was cut off goes on when it is given
the same folder. --quick stays at {QUICK_LIMIT:,} tokens and ends in a minute. --check measures what the goals need and
exits 1 if one is missed; goals whose hardware is absent are listed as not measured and do not count: those in bf16 need
a CPU with AMX.
Levels: op (attention alone), layer (with its projections: time, routing's share, memory), block (beside attention
removed), model (whole models on one image), data (the Pathfinder generator and its loader), tiled (a large image),
peers (the layer beside other papers').
On pretrained weights, with options of their own (--help after the word): fidelity (distances to full attention's
features) and heads (what segmentation heads make of them).
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="castvision benchmark", description=__doc__, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "levels", nargs="*", metavar="LEVEL", help=f"of {', '.join(LEVELS)} (default: all but tiled and peers)"
    )
    parser.add_argument("--quick", action="store_true", help="a minute's look")
    parser.add_argument("--check", action="store_true", help="measure what the goals need and judge them")
    parser.add_argument("--output", type=Path, metavar="DIR", help="(default: a new folder under runs/)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: 1)")
    parser.add_argument(
        "--dtype", nargs="+", choices=("fp32", "bf16"), help="(default: those the hardware multiplies itself)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--sizes", nargs="+", type=int, metavar="N", help=f"tokens (default: {_list(SIZES)})")
    parser.add_argument("--img-size", type=int, metavar="PIXELS", help="a side of the models' image (default: 1024)")
    parser.add_argument("--peers", nargs="*", metavar="MODEL", help=_PEERS_HELP)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write; 0 done, 1 a goal missed or nothing could be done, 2 wrong arguments."""
    words = sys.argv[1:] if argv is None else list(argv)
    if words and words[0] in APART:
        return int(importlib.import_module(APART[words[0]]).main(words[1:]))
    args = build_parser().parse_args(words)
    logging.basicConfig(format="%(message)s")
    try:
        settings = make_settings(args)
    except ValueError as error:
        sys.stderr.write(f"benchmark: {error}\n")
        return 2
    output = args.output or Path("runs") / time.strftime("benchmark-%Y%m%d-%H%M%S")
    try:
        return run(settings, output)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"benchmark: {error}\n")
        return 1


def make_settings(args: argparse.Namespace) -> Settings:
    """Settings from arguments.

    Raises:
        ValueError: One that is out of range or that this machine cannot do.
    """
    unknown = [level for level in args.levels if level not in LEVELS]
    if unknown:
        raise ValueError(f"expected levels of {', '.join(LEVELS)}, got {unknown[0]!r}")
    import torch  # here, so that a mistyped level is answered at once

    from benchmarks.record import has_bf16

    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device for --device cuda, found none; leave it out to measure the CPU")
    sizes = tuple(sorted(set(args.sizes or SIZES)))
    if sizes[0] < 1 or args.threads < 1 or (args.img_size or 1) < 1:
        raise ValueError(f"expected --sizes, --threads and --img-size >= 1, got {_list(sizes)} and {args.threads}")
    if args.quick:
        sizes = tuple(size for size in sizes if size <= QUICK_LIMIT) or (QUICK_LIMIT,)
    peers = args.peers if args.peers is not None else QUICK_PEERS if args.quick else PEERS
    native = ("fp32", "bf16") if args.device == "cuda" or has_bf16() else ("fp32",)
    levels = args.levels or UNASKED
    return Settings(
        levels=tuple(levels), sizes=sizes, dtypes=tuple(dict.fromkeys(args.dtype or native)),
        device=args.device, threads=args.threads, img_size=args.img_size or (QUICK_IMG_SIZE if args.quick else 1024),
        peers=tuple(peers), quick=args.quick, check=args.check,
    )  # fmt: skip


def run(settings: Settings, output: Path) -> int:
    """Measure everything asked for, keep it, print it, and judge it if asked to.

    Raises:
        FileExistsError: The folder holds a finished run, or one of other settings.
    """
    from dataclasses import asdict

    import torch
    from rich.console import Console

    from benchmarks.goals import MISSED, judge
    from benchmarks.record import Results, describe_machine, find_hardware, name_processor
    from benchmarks.report import print_goals, print_results, save_plot

    torch.manual_seed(0)
    torch.set_num_threads(settings.threads)
    machine = describe_machine()
    results = Results(
        output / "benchmark.json", {"machine": machine, "clock": settings.clock, "settings": asdict(settings)}
    )
    hardware = find_hardware(settings.device)
    goals = select_goals(settings, hardware)
    measure(select_tasks(settings, goals, hardware), results)
    results.finish()
    save_plot(output / "benchmark.png", results)
    console = Console()
    print_results(results, console)
    verdicts = [judge(goal, results.measurements, hardware) for goal in goals]
    if settings.check:
        print_goals(verdicts, name_processor(machine, settings.device), console)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    console.print(f"{settings.threads} thread(s), {settings.clock}; {output / 'benchmark.json'}", highlight=False)
    return int(settings.check and any(verdict.outcome == MISSED for verdict in verdicts))


def select_goals(settings: Settings, hardware: frozenset[str]) -> list[Goal]:
    """The goals of the chosen levels, of what a quick run can reach, and of this device and those absent here."""
    from benchmarks.goals import make_goals

    def is_meant(goal: Goal) -> bool:
        key = goal.ours
        if key.level not in settings.levels or (settings.quick and not goal.is_quick):
            return False
        if key.level in ("model", "data") or goal.needs not in hardware:
            return True
        return key.size in settings.sizes and key.dtype in settings.dtypes

    return [goal for goal in make_goals() if is_meant(goal)]


def select_tasks(settings: Settings, goals: Sequence[Goal], hardware: frozenset[str]) -> list[Task]:
    """All tasks, or those that a goal of this hardware reads."""
    tasks = make_tasks(settings)
    if not settings.check:
        return tasks
    wanted = {key for goal in goals if goal.needs in hardware for key in goal.keys}
    return [task for task in tasks if wanted.intersection(task.keys)]


def measure(tasks: Sequence[Task], results: Results) -> None:
    """Do the tasks whose measurements are missing, with a progress line on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        line = progress.add_task("benchmark", total=len(tasks))
        for task in tasks:
            progress.update(line, description=task.title)
            if any(key not in results.measurements for key in task.keys):
                results.add(*task.measure())
            progress.advance(line)


def _list(values: Sequence[object]) -> str:
    return " ".join(map(str, values))


if __name__ == "__main__":
    sys.exit(main())
