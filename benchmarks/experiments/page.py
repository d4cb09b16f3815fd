"""``results/README.md``: every table and figure from committed JSON, and which runs are missing; no number by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.definition import Experiment, load_experiments
from benchmarks.experiments.figures import draw
from benchmarks.experiments.rows import Rows
from benchmarks.experiments.running import missing_runs
from benchmarks.experiments.tables import (
    NONE,
    Found,
    find_rows,
    find_unfinished,
    make_comparison,
    make_table,
    make_unfinished_table,
    markdown,
)
from benchmarks.fidelity.report import frontier, make_saliency_table, make_scene_table, make_tables, summarize
from benchmarks.fidelity.settings import FULL
from benchmarks.record import load_results
from benchmarks.report import LABELS, format_quantity
from castvision.files import draft

MEASURED = Path(__file__).resolve().parents[1] / "results"
"""What ``castvision benchmark`` measured."""

_HEAD = """\
# Results

Made by `python tools/experiment.py render` from JSON: the rows below `rows/`, one a run, and `benchmarks/results`.
Nothing here is written by hand. What is to be run stands in `experiments/` (tasks) and `settings.yaml` (what stands in
for attention, a line each); `python tools/experiment.py run` runs what is missing, and may be stopped or killed at any
time.

± is half of the 95 % interval of the mean over seeds (Student's t); in brackets the number of seeds. A seed is the
start of the weights, the training images and the held-out images. Without an interval a difference shows nothing.
"""
_EQUAL = """\
Equal images: each setting trains on as many. Equal time: each trains on as many images as fit into the given seconds of
one processor core, by the rate of its own runs at equal images; the time to make or read training images is in it,
held-out images are not. The checkpoint is chosen on images of its own; test images are read once. "attention removed"
has no attention and no projections, "full attention" is one window that holds all tokens.
"""
_FIDELITY = """\
How much of full attention's features, on pretrained weights and photographs, is left unexplained when attention is
replaced and nothing is trained; bold: no other is both closer and faster (`castvision benchmark fidelity`,
`benchmarks/results/fidelity`).
"""


def render(folder: Path) -> Path:
    """Write the page and its figures.

    Args:
        folder: The results folder.

    Returns:
        The page.
    """
    experiments = load_experiments(folder)
    rows = Rows(folder)
    of_all = [find_rows(each, rows) for each in experiments]
    for experiment, found in zip(experiments, of_all, strict=True):
        draw(_figure(folder, experiment), experiment, found)
    page = folder / "README.md"
    with draft(page) as temporary:
        temporary.write_text(make_page(folder), encoding="utf-8")
    return page


def make_page(folder: Path) -> str:
    """The Markdown of a results folder."""
    experiments = load_experiments(folder)
    rows = Rows(folder)
    of_all = [find_rows(each, rows) for each in experiments]
    parts = [_HEAD, *_comparison(experiments, of_all), "## From scratch\n", _EQUAL]
    for experiment, found in zip(experiments, of_all, strict=True):
        parts += _experiment(folder, experiment, found)
    unfinished = [pair for experiment in experiments for pair in find_unfinished(experiment, rows)]
    if unfinished:
        parts += ["## Not finished yet\n", make_unfinished_table(unfinished) + "\n"]
    parts += [*_missing(experiments, rows), *_spent([row for each in of_all for row in _flat(each)])]
    parts += [*_fidelity(MEASURED / "fidelity"), *_speed(MEASURED / "cpu" / "benchmark.json")]
    return "\n".join(parts)


def _flat(found: Found) -> list[dict[str, Any]]:
    return [row for of_seeds in found.values() for row in of_seeds.values()]


def _figure(folder: Path, experiment: Experiment) -> Path:
    return folder / "figures" / f"{experiment.name}.png"


def _comparison(experiments: Sequence[Experiment], of_all: Sequence[Found]) -> list[str]:
    table = make_comparison(experiments, of_all)
    if not table:
        return []
    note = "Bold: the interval leaves out zero. All others show nothing, whichever way they point.\n"
    return ["## What held, and what did not\n", table + "\n", note]


def _experiment(folder: Path, experiment: Experiment, found: Found) -> list[str]:
    parts = [f"### {experiment.title}\n", f"{experiment.about.strip()}\n"]
    if not found:
        return [*parts, f"No run yet: `python tools/experiment.py run {experiment.name}`.\n"]
    parts.append(make_table(experiment, found) + "\n")
    figure = _figure(folder, experiment)
    return [*parts, f"![Curves of {experiment.name}]({figure.relative_to(folder).as_posix()})\n"]


def _missing(experiments: Sequence[Experiment], rows: Rows) -> list[str]:
    lines = []
    for experiment in experiments:
        missing = missing_runs([experiment], rows)
        if missing:
            total = len(experiment.runs())
            settings = ", ".join(dict.fromkeys(run.setting for run in missing))
            command = f"`python tools/experiment.py run {experiment.name}`"
            lines.append([experiment.name, f"{len(missing)} of {total}", settings, command])
    if not lines:
        return []
    return ["## Missing\n", markdown(["experiment", "runs", "settings", "command"], lines) + "\n"]


def _spent(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Hardware, versions and hours."""
    if not rows:
        return []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        machine = row["machine"]
        name = f"{machine.get('gpu', machine['cpu'])}, {machine['instructions']}; {row['hardware']}"
        groups.setdefault((name, f"torch {machine['torch']}, timm {machine['timm']}"), []).append(row)
    lines = []
    for (name, versions), mine in sorted(groups.items()):
        clock, processor = (math.fsum(row[field] for row in mine) / 3600 for field in ("seconds", "cpu_seconds"))
        lines.append([name, versions, str(len(mine)), f"{clock:.2f}", f"{processor:.2f}"])
    heads = ["machine", "versions", "runs", "hours of training", "CPU hours of training"]
    return ["## Hardware and hours\n", markdown(heads, lines) + "\n"]


def _fidelity(folder: Path) -> list[str]:
    """What replaces full attention in a pretrained model without training, and what existing heads make of it."""
    if not (folder / "fidelity.json").is_file():
        return []
    rows = json.loads((folder / "fidelity.json").read_text(encoding="utf-8"))["rows"]
    parts = [
        "## Fidelity without training\n",
        _FIDELITY,
    ]
    for (model, size), summaries in summarize(rows).items():
        best = [each.setting for each in frontier(summaries)]
        others = [f"`{name}`" for name in best if not name.startswith("near-far") and name != FULL.name]
        led = f"all but {', '.join(others)} are near-far" if others else "all are near-far"
        names = ", ".join(f"`{name}`" for name in best)
        parts.append(
            f"- {model}, {size:,} px, closest for their time, fastest first: {names}; beside full attention {led}."
        )
    parts += ["", make_tables(rows)]
    heads = folder / "heads.json"
    if heads.is_file():
        content = json.loads(heads.read_text(encoding="utf-8"))
        notes = (
            ("Heads trained on a method's own features, and full attention's heads fed with them:\n", make_scene_table),
            (
                "A saliency decoder trained by others, difference and IoU to its map on full attention:\n",
                make_saliency_table,
            ),
        )
        for (note, make), key in zip(notes, ("scenes", "saliency"), strict=True):
            parts += [note, make(content[key]) + "\n"]
    return parts


def _speed(path: Path) -> list[str]:
    """A layer's time and peak memory over the number of tokens."""
    if not path.is_file():
        return []
    results = load_results(path)
    machine, settings = results.header["machine"], results.header["settings"]
    parts = [
        "## Speed and memory of a layer\n",
        f"{machine.get('gpu', machine['cpu'])}, {machine['instructions']}, {settings['threads']} thread(s), "
        f"{results.header['clock']} "
        "(`castvision benchmark layer`, `benchmarks/results/cpu`).\n",
    ]
    keys = [key for key in results.measurements if key.level == "layer" and key.inputs == "random"]
    keys = [key for key in keys if key.subject in LABELS and key.quantity in ("seconds", "bytes")]
    for quantity, dtype, phase in sorted({(key.quantity, key.dtype, key.phase) for key in keys}):
        mine = [key for key in keys if (key.quantity, key.dtype, key.phase) == (quantity, dtype, phase)]
        subjects = [name for name in LABELS if any(key.subject == name for key in mine)]
        cells = {(key.subject, key.size): format_quantity(results.measurements[key].value, quantity) for key in mine}
        lines = [
            [f"{size:,}", *(cells.get((name, size), NONE) for name in subjects)]
            for size in sorted({k.size for k in mine})
        ]
        what = "time" if quantity == "seconds" else "peak memory"
        parts += [markdown([f"tokens; {what}, {dtype}, {phase}", *(LABELS[name] for name in subjects)], lines) + "\n"]
    return parts
