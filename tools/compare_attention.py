#!/usr/bin/env python
"""Train small models from scratch under six kinds of attention, each on as many images, and compare what they learn.

Four dense tasks at 256 tokens, where a window of 4 x 4 holds 16 of them. Each finished run is a row of the JSON; rows
that are there are not run again, so stop it and start it again at any time. At the end, or at once with --report, the
table goes to stdout and the picture beside the JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # works without an installation

MODEL = "cast_vit_atto_patch4_32"
SETTINGS: dict[str, dict[str, Any]] = {
    "near_far": {"window_size": 4},
    "near_far, blocks": {"window_size": 4, "assignment": "blocks"},
    "near_far, rope in routing": {"window_size": 4, "rope_in_routing": True},
    "paper": {"attention": "paper"},
    "window only": {"window_size": 4, "summaries": "none"},
    # one window: with the local branch, as the others have it
    "full attention": {"window_size": 16, "summaries": "none"},
    "full attention, no local branch": {"attn_layer": "full"},
    "attention removed": {"attn_layer": "none"},
}
SEEDS = (0, 1)
FIRST = "join"
ONLY_FIRST = ("near_far, rope in routing", "full attention, no local branch")  # side questions: one task answers them
BATCH, HELD_OUT = 16, 500
RATE, BETAS, DECAY, CLIP, WARMUP = 4e-3, (0.9, 0.98), 0.02, 1.0, 0.1


class Task(NamedTuple):
    """What is learned.

    Attributes:
        img_size: Height and width.
        images: Number of training images of each run.
        num_classes: The last one is the foreground whose IoU counts.
    """

    img_size: int
    images: int
    num_classes: int


TASKS = {
    "join": Task(32, 5_600, 2),
    "region": Task(64, 3_200, 2),
    "maze": Task(64, 3_200, 2),
    "pathfinder_seg": Task(32, 3_200, 3),
}


def make_dataset(task: str, split: str, seed: int) -> Any:
    """The data set of a task's split."""
    from castvision.data.synthetic import MazeDataset, PathfinderSegDataset, RegionDataset
    from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec

    if task == "join":
        return PathfinderDataset(PathfinderSpec.lra(32, 6, "clean"), "join", split, seed=seed)
    if task == "region":
        return RegionDataset(64, radius=3, split=split, seed=seed)
    if task == "maze":
        return MazeDataset(64, cell=8, winding=0.5, split=split, seed=seed)
    return PathfinderSegDataset(32, split=split, seed=seed)


def train(task: str, setting: str, seed: int, images: int) -> dict[str, Any]:
    """One run in a process of its own, on one thread; gives its row."""
    import torch
    from torch.nn import functional
    from torch.utils.data import default_collate

    from benchmarks.record import describe_machine
    from castvision.models.segmenter import create_segmenter
    from castvision.training.optim import Schedule, parameter_groups

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    size, _, num_classes = TASKS[task]
    kwargs = {"img_size": size, "patch_size": size // 16, **SETTINGS[setting]}
    model = create_segmenter(MODEL, num_classes, model_kwargs=kwargs)
    optimizer = torch.optim.AdamW(parameter_groups(model, DECAY), lr=RATE, betas=BETAS, fused=True)
    steps, schedule, dataset = images // BATCH, Schedule(WARMUP), make_dataset(task, "train", seed)
    begin, total = time.perf_counter(), 0.0
    for step in range(steps):
        x, y = default_collate(dataset.__getitems__(range(step * BATCH, (step + 1) * BATCH)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule.factor((step + 0.5) / steps)
        loss = functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        total += float(loss.detach())
        if (step + 1) % 50 == 0:
            passed = time.perf_counter() - begin
            print(
                f"{task} | {setting} | seed {seed}: {step + 1}/{steps}, loss {total / 50:.4f}, {passed:.0f} s",
                flush=True,
            )
            total = 0.0
    seconds = time.perf_counter() - begin
    return {
        "task": task,
        "setting": setting,
        "seed": seed,
        "images": steps * BATCH,
        "iou": round(evaluate(model, make_dataset(task, "test", 0), num_classes - 1), 4),
        "seconds": round(seconds, 1),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "model_kwargs": kwargs,
        "machine": describe_machine(),
    }


def evaluate(model: Any, dataset: Any, foreground: int) -> float:
    """IoU of a class over the first held-out images together."""
    import torch
    from torch.utils.data import default_collate

    model.eval()
    both = either = 0
    for first in range(0, HELD_OUT, 50):
        x, y = default_collate(dataset.__getitems__(range(first, first + 50)))
        with torch.inference_mode():
            marked = model(x).argmax(1) == foreground
        both += int((marked & (y == foreground)).sum())
        either += int((marked | (y == foreground)).sum())
    return both / max(either, 1)


def follow_parent() -> None:
    """Let this process end with the one that started it: a comparison that is killed leaves none behind."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Finished runs; none where there is no file."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return rows


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Add a run."""
    from castvision.files import draft

    lines = ",\n".join(json.dumps(each) for each in [*read_rows(path), row])
    with draft(path) as temporary:
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def wanted_runs(path: Path, images: int | None) -> list[tuple[str, str, int, int]]:
    """(task, setting, seed, images) of the runs that are missing: all of the first task, then seed by seed."""
    done = {(row["task"], row["setting"], row["seed"], row["images"]) for row in read_rows(path)}
    runs = [
        (name, setting, seed, (images or task.images) // BATCH * BATCH)
        for seed in SEEDS
        for name, task in TASKS.items()
        for setting in SETTINGS
        if name == FIRST or setting not in ONLY_FIRST
    ]
    runs.sort(key=lambda run: run[0] != FIRST)  # both seeds of one task before the others
    return [run for run in runs if run not in done]


def run_all(path: Path, runs: list[tuple[str, str, int, int]], jobs: int) -> int:
    """Run what is missing in processes beside each other; only this one writes. Gives how many failed."""
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    failed = 0
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), follow_parent) as pool:
        futures = {pool.submit(train, *run): run for run in runs}
        for number, future in enumerate(as_completed(futures), 1):
            error = future.exception()
            if error is not None:  # the others' results are not lost for one that fails
                failed += 1
                print(f"compare_attention.py: {futures[future]} failed: {error!r}", file=sys.stderr)
                continue
            row = future.result()
            append_row(path, row)
            print(
                f"== {number} of {len(runs)}: {row['task']} | {row['setting']} | seed {row['seed']}: "
                f"IoU {row['iou']:.3f}, {row['seconds']:.0f} s",
                flush=True,
            )
    return failed


def gather(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[int, float]]]:
    """IoU by task, setting and seed; of several numbers of images, those of the last run."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for task in TASKS:
        mine = [row for row in rows if row["task"] == task]
        for row in (row for row in mine if row["images"] == mine[-1]["images"]):
            found.setdefault(task, {}).setdefault(row["setting"], {})[row["seed"]] = row["iou"]
    return found


def make_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a setting, a column a task; mean, then each seed, "-" where one is missing."""
    found = gather(rows)
    images = {row["task"]: row["images"] for row in rows}
    head = ["attention", *(f"{task} ({images[task]:,} images)" for task in found)]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for setting in SETTINGS:
        cells = []
        for task in found:
            seeds = found[task].get(setting, {})
            each = ", ".join(f"{seeds[seed]:.3f}" if seed in seeds else "-" for seed in SEEDS)
            cells.append(f"{math.fsum(seeds.values()) / len(seeds):.3f} ({each})" if seeds else "-")
        lines.append("| " + " | ".join([setting, *cells]) + " |")
    return "\n".join(lines)


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """A panel a task: the mean as a bar, each seed as a dot."""
    from benchmarks.report import new_plot, write_plot

    found = gather(rows)
    images = {row["task"]: row["images"] for row in rows}
    figure = new_plot(3.4 * len(found) + 1.6, 3.4)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    rows_down = {setting: -row for row, setting in enumerate(SETTINGS)}
    for axes, (task, settings) in zip(panels, found.items(), strict=True):
        for setting, seeds in settings.items():
            mean = math.fsum(seeds.values()) / len(seeds)
            axes.barh(rows_down[setting], mean, color=f"C{-rows_down[setting]}", alpha=0.6)
            axes.plot(list(seeds.values()), [rows_down[setting]] * len(seeds), "k.", markersize=6)
            axes.text(max(seeds.values()) + 0.02, rows_down[setting], f"{mean:.2f}", va="center", fontsize=9)
        axes.set(title=f"{task}, {images[task]:,} images", xlabel="IoU of the foreground", xlim=(0, 1.1))
        axes.set_yticks(list(rows_down.values()), list(rows_down))
        axes.grid(axis="x", alpha=0.3)
    write_plot(path, figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks/results/from_scratch.json", help="rows of finished runs"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs beside each other, a core each (default: 1)")
    parser.add_argument("--images", type=int, help="training images of each run, rather than the tasks' own")
    parser.add_argument("--report", action="store_true", help="run nothing; table and picture of what is there")
    arguments = parser.parse_args()
    if arguments.jobs < 1 or (arguments.images is not None and arguments.images < BATCH):
        parser.error(f"expected --jobs >= 1 and --images >= {BATCH}")
    failed = 0
    if not arguments.report:
        failed = run_all(arguments.json, wanted_runs(arguments.json, arguments.images), arguments.jobs)
    rows = read_rows(arguments.json)
    if not rows:
        print(f"compare_attention.py: no run in {arguments.json}", file=sys.stderr)
        return 1
    print(make_table(rows))
    draw(arguments.json.with_suffix(".png"), rows)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
