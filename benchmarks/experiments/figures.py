"""The picture of an experiment: the metric on the images that choose the checkpoint, over images and over time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.experiments.definition import Experiment
from benchmarks.experiments.rows import images_per_second
from benchmarks.experiments.tables import Found
from benchmarks.report import new_plot, write_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(path: Path, experiment: Experiment, found: Found) -> bool:
    """Draw and write.

    Args:
        path: A ``.png``.
        experiment: Whose runs.
        found: Its finished rows.

    Returns:
        False, and nothing is written, where no run has a curve.
    """
    budgets = [budget for budget in ("images", "seconds") if any(key[1] == budget for key in found)]
    if not budgets:
        return False
    figure = new_plot(11, 4.2)
    by_images, by_time = figure.subplots(1, 2, sharey=True)
    for number, setting in enumerate(experiment.settings):
        _draw_curve(by_images, setting, f"C{number}", found.get((setting, "images"), {}), in_seconds=False)
        _draw_curve(by_time, setting, f"C{number}", found.get((setting, budgets[-1]), {}), in_seconds=True)
    by_images.set(
        xlabel="training images", ylabel=f"{experiment.metric}, choosing images", title="runs at equal images"
    )
    title = "runs at equal time" if budgets[-1] == "seconds" else "the same runs over time"
    by_time.set(xlabel="seconds of the processor, training only", title=title)
    for axes in (by_images, by_time):
        axes.grid(alpha=0.3)
    by_images.legend(fontsize=7)
    figure.suptitle(f"{experiment.title}: mean over seeds, each seed thin", fontsize=9)
    write_plot(path, figure)
    return True


def _draw_curve(axes: Axes, setting: str, colour: str, rows: dict[int, dict[str, Any]], *, in_seconds: bool) -> None:
    """The mean over seeds as a line with dots, each seed thin beside it."""
    curves = []
    for row in rows.values():
        scale = 1 / images_per_second(row) if in_seconds else 1.0
        curves.append([(images * scale, value) for images, value in row["curve"]])
    if not curves or not curves[0]:
        return
    points = min(map(len, curves))
    mean = [
        tuple(math.fsum(curve[point][axis] for curve in curves) / len(curves) for axis in (0, 1))
        for point in range(points)
    ]
    axes.plot([x for x, _ in mean], [y for _, y in mean], ".-", color=colour, label=setting)
    for curve in curves if len(curves) > 1 else []:
        axes.plot([x for x, _ in curve], [y for _, y in curve], color=colour, alpha=0.3, linewidth=0.7)
