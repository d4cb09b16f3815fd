"""Table and picture of measured rows: means over images, and which settings no other beats in both figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fidelity.settings import FULL, SETTINGS
from benchmarks.report import format_quantity, new_plot, write_plot


@dataclass(frozen=True)
class Summary:
    """Means over images of a setting at a size.

    Attributes:
        setting: Its name.
        images: How many.
        unexplained: Mean.
        worst: Of the image on which most is unexplained.
        shift: Mean share of it that is a shift of the mean.
        cosine: Mean over patch tokens and images.
        class_cosine: Mean; nan without prefix tokens.
        seconds: Mean of the forward.
        attention: Mean, over images, of full attention's seconds in attention layers over this one's.
        peak_bytes: Largest.
    """

    setting: str
    images: int
    unexplained: float
    worst: float
    shift: float
    cosine: float
    class_cosine: float
    seconds: float
    attention: float
    peak_bytes: int


def summarize(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, int], list[Summary]]:
    """Summaries by model and size, best first, over the images that full attention was measured on."""
    found: dict[tuple[str, int], list[Summary]] = {}
    for model, size in sorted({(row["model"], row["size"]) for row in rows}):
        mine = [row for row in rows if (row["model"], row["size"]) == (model, size)]
        full = {row["image"]: row["attention_seconds"] for row in mine if row["setting"] == FULL.name}
        by_setting: dict[str, list[dict[str, Any]]] = {}
        for row in mine:
            if row["image"] in full:
                by_setting.setdefault(row["setting"], []).append(row)
        summaries = [_summary(name, each, full) for name, each in by_setting.items()]
        found[model, size] = sorted(summaries, key=lambda each: each.unexplained)
    return found


def _summary(name: str, rows: Sequence[dict[str, Any]], full: dict[str, float]) -> Summary:
    def mean(field: str) -> float:
        return math.fsum(math.nan if row[field] is None else row[field] for row in rows) / len(rows)

    times = math.fsum(full[row["image"]] / row["attention_seconds"] for row in rows) / len(rows)
    return Summary(
        name, len(rows), mean("unexplained"), max(row["unexplained"] for row in rows), mean("shift"), mean("cosine"),
        mean("class_cosine"), mean("seconds"), times, max(row["peak_bytes"] for row in rows),
    )  # fmt: skip


def frontier(summaries: Sequence[Summary]) -> list[Summary]:
    """Those that no other beats both in unexplained variance and in time of the attention layers, fastest first."""
    chosen: list[Summary] = []
    for each in sorted(summaries, key=lambda each: (-each.attention, each.unexplained)):
        if not chosen or each.unexplained < chosen[-1].unexplained:
            chosen.append(each)
    return chosen


def make_tables(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown, a table for each model and size; what is on the frontier is bold."""
    lines = []
    for (model, size), summaries in summarize(rows).items():
        head = (f"{model}, {size:,} px", "images", "unexplained", "at worst", "of it shift", "cosine", "class token",
                "forward", "attention layers", "memory")  # fmt: skip
        lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        best = {each.setting for each in frontier(summaries)}
        for each in summaries:
            cells = (
                f"**{each.setting}**" if each.setting in best else each.setting, str(each.images),
                f"{each.unexplained:.3f}", f"{each.worst:.3f}", f"{each.shift:.0%}",
                f"{each.cosine:.4f}", f"{each.class_cosine:.4f}",
                format_quantity(each.seconds, "seconds"), f"{each.attention:.2f} times faster",
                format_quantity(each.peak_bytes, "bytes"),
            )  # fmt: skip
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def make_scene_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of heads on images of the native size, a column for each scene; empty without rows."""
    scenes = list(dict.fromkeys((row["scene"], row["seeds"]) for row in rows))

    def cell(row: dict[str, Any]) -> str:
        own, full = (f"{row[heads]['linear']:.3f}/{row[heads]['mlp']:.3f}" for heads in ("own", "full"))
        return f"{own}, {full} ({row['unexplained']:.3f})"

    cells = {(row["scene"], row["seeds"], row["setting"]): cell(row) for row in rows}
    heads = [f"{scene}, {seeds} seed{'s' if seeds > 1 else ''}: own, full's (unexplained)" for scene, seeds in scenes]
    return _matrix(heads, scenes, cells)


def make_saliency_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown of mean difference and IoU to full attention's map, a column for each image and size."""
    columns = list(dict.fromkeys((row["image"], row["size"]) for row in rows))
    cells = {
        (row["image"], row["size"], row["setting"]): f"{row['difference']:.3f} / {row['iou']:.2f}"
        for row in rows
        if row["setting"] != FULL.name
    }
    return _matrix([f"{image}, {size:,} px" for image, size in columns], columns, cells)


def _matrix(heads: Sequence[str], columns: Sequence[tuple[Any, ...]], cells: dict[tuple[Any, ...], str]) -> str:
    """Settings down, in the order in which they came; a dash for what is not there."""
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"] if heads else []
    for setting in dict.fromkeys(key[-1] for key in cells):
        lines.append(f"| {setting} | " + " | ".join(cells.get((*each, setting), "–") for each in columns) + " |")
    return "\n".join(lines)


def draw(path: Path, rows: Sequence[dict[str, Any]], processor: str) -> None:
    """Unexplained variance over the time of the attention layers, a panel for each model and size."""
    groups = summarize(rows)
    order = {each.name: number for number, each in enumerate(SETTINGS)}
    figure = new_plot(6.4 * len(groups) + 0.4, 5.6)
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, ((model, size), summaries) in zip(panels, groups.items(), strict=True):
        shown = [each for each in summaries if each.setting != FULL.name and each.unexplained > 0]
        best = frontier(shown)
        axes.plot([1 / each.attention for each in best], [each.unexplained for each in best], "k-", alpha=0.4)
        for each in sorted(shown, key=lambda each: order.get(each.setting, 0)):
            number = order.get(each.setting, 0)
            marker, colour = "os^"[number // 10 % 3], f"C{number % 10}"
            axes.plot(1 / each.attention, each.unexplained, marker, color=colour, label=each.setting)
        images = max(each.images for each in summaries)
        title = f"{model}, {size:,} px, up to {images} images"
        axes.set(yscale="log", xscale="log", title=title, ylabel="unexplained variance")
        axes.set_xlabel("time of the attention layers, full attention = 1")
        axes.axvline(1, color="grey", linestyle=":")
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=6)
    figure.suptitle(f"{processor}, one thread; the line joins what no other setting beats", fontsize=9)
    write_plot(path, figure)
