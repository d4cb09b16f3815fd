"""Titled figures (matplotlib, without a display): cluster maps of an image, its prediction, a contact sheet of many."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.visualization.pictures import RGB, Labels, cluster_colours

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Counts = np.ndarray[Any, np.dtype[Any]]

_DPI = 120
_CELL = 3.0
_HEADING_FONT = 12
_TITLE_FONT = 9


@dataclass(frozen=True)
class Panel:
    """One titled picture.

    Attributes:
        title: Printed above, may have several lines.
        picture: (height, width, 3) uint8.
    """

    title: str
    picture: RGB = field(repr=False)


def shorten(text: str, length: int) -> str:
    """Cut the middle out of a text longer than ``length``: a file's name keeps its beginning and its end."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def plot_grid(panels: Sequence[Panel], heading: str, *, columns: int = 4) -> Figure:
    """Panels row by row under a heading.

    Args:
        panels: At least one.
        heading: Above the whole figure.
        columns: Panels a row, >= 1.

    Returns:
        The figure; `as_png` turns it into a PNG.

    Raises:
        ValueError: No panels.
    """
    if not panels:
        raise ValueError("expected at least one panel, got none")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = _new_figure(columns * _CELL, rows * (_CELL * _aspect(panels) + 0.5) + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel)
    _set_heading(figure, heading)
    return figure


def plot_rows(rows: Sequence[Sequence[Panel]], heading: str) -> Figure:
    """One row of panels for each image.

    Args:
        rows: At least one row; rows may differ in length.
        heading: Above the whole sheet.

    Returns:
        The figure.

    Raises:
        ValueError: No rows or an empty row.
    """
    if not rows or not all(rows):
        raise ValueError(f"expected non-empty rows of panels, got lengths {[len(row) for row in rows]}")
    columns = max(len(row) for row in rows)
    heights = [_CELL * _aspect(row) + 0.45 for row in rows]
    figure = _new_figure(columns * _CELL, sum(heights) + 0.5)
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.ravel():
        axis.set_axis_off()
    for row_axes, row in zip(axes, rows, strict=True):
        for axis, panel in zip(row_axes, row, strict=False):
            _draw(axis, panel)
    _set_heading(figure, heading)
    return figure


def plot_classification(picture: RGB, names: Sequence[str], scores: Sequence[float], heading: str) -> Figure:
    """The picture beside a bar for each of the most probable classes, most probable first.

    Args:
        picture: (height, width, 3) uint8.
        names: Class names, most probable first, not empty.
        scores: Their probabilities, 0..1.
        heading: Above the figure.

    Returns:
        The figure.
    """
    aspect = min(max(picture.shape[0] / picture.shape[1], 0.5), 1.6)
    figure = _new_figure(8.5, 4.0 * aspect + 0.6)
    left, right = figure.subplots(1, 2, width_ratios=[4.0, 3.6])
    left.imshow(picture, interpolation="nearest")
    left.set_axis_off()
    places = np.arange(len(names))
    right.barh(places, scores, height=0.42, color=[c / 255 for c in cluster_colours(len(names))], align="center")
    for place, name, score in zip(places, names, scores, strict=True):
        label = f"{shorten(name, 34)}  {score:.1%}"
        right.text(0.008, place - 0.26, label, va="bottom", ha="left", fontsize=10, parse_math=False)
    right.set(xlim=(0, 1), ylim=(max(len(names), 3) - 0.5, -0.8), xlabel="probability")
    right.set_yticks([])
    right.spines[["top", "right"]].set_visible(False)
    _set_heading(figure, heading)
    return figure


def plot_segmentation(
    picture: RGB, overlay: RGB, mask: Labels, names: Sequence[str], heading: str, *, untinted: int | None = None
) -> Figure:
    """The picture, the overlaid mask, and a legend with each present class's share of the pixels (the twelve largest).

    Args:
        picture: (height, width, 3) uint8.
        overlay: The same size, the mask laid over it.
        mask: (rows, cols) class of each pixel.
        names: Class names.
        heading: Above the figure.
        untinted: The class the overlay leaves as it is.

    Returns:
        The figure.
    """
    from matplotlib.patches import Patch

    figure = plot_grid([Panel("image", picture), Panel("prediction", overlay)], heading, columns=2)
    figure.set_size_inches(9.0, 4.3 * min(max(picture.shape[0] / picture.shape[1], 0.4), 1.6) + 1.2)
    classes, counts = np.unique(mask, return_counts=True)
    handles = []
    for place in np.argsort(counts)[::-1][:12]:
        number, share = int(classes[place]), counts[place] / mask.size
        label = f"{shorten(names[number], 26)} {share:.1%}"
        colour = tuple(cluster_colours(number + 1)[number] / 255)
        face, edge = ("none", "0.5") if number == untinted else (colour, "none")
        handles.append(Patch(facecolor=face, edgecolor=edge, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=_TITLE_FONT, frameon=False)
    return figure


def plot_confusion(confusion: Counts, names: Sequence[str], heading: str) -> Figure:
    """Each class's pixels or images by what they were taken for, as shares of the class.

    Args:
        confusion: (classes, classes) counts, rows = truth.
        names: Class names.
        heading: Above the figure.

    Returns:
        The figure.
    """
    classes = len(names)
    total = confusion.sum(axis=1, keepdims=True)
    shares = np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)
    side = min(max(3.5, 0.5 * classes + 2.5), 30.0)
    figure = _new_figure(side + 1.0, side)
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, label="share of the class")
    axis.set(xlabel="prediction", ylabel="truth")
    if classes <= 60:
        short = [shorten(name, 20) for name in names]
        axis.set_xticks(range(classes), short, rotation=45, ha="right", parse_math=False)
        axis.set_yticks(range(classes), short, parse_math=False)
    if classes <= 25:
        for row, col in np.argwhere(~np.isnan(shares)):
            share = shares[row, col]
            colour = "black" if share > 0.6 else "white"
            axis.text(col, row, f"{share:.0%}", ha="center", va="center", color=colour, fontsize=_TITLE_FONT)
    _set_heading(figure, heading)
    return figure


def as_png(figure: Figure) -> bytes:
    """Draw a figure with the Agg back end.

    Returns:
        The bytes of a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph"
        )  # names in scripts the built-in font lacks are drawn as boxes
        FigureCanvasAgg(figure).print_png(buffer, pil_kwargs={"compress_level": 3})  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def _new_figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    # NOTE: Agg refuses pictures beyond 2^16 pixels a side; long contact sheets are drawn smaller.
    dpi = min(_DPI, 60_000 / max(width, height))
    return Figure(figsize=(width, height), dpi=dpi, layout="constrained", facecolor="white")


def _set_heading(figure: Figure, heading: str) -> None:
    figure.suptitle(heading, fontsize=_HEADING_FONT, wrap=True, parse_math=False)


def _aspect(panels: Sequence[Panel]) -> float:
    return max(min(max(panel.picture.shape[0] / panel.picture.shape[1], 0.2), 3.0) for panel in panels)  # type: ignore[no-any-return]


def _draw(axis: Axes, panel: Panel) -> None:
    axis.imshow(panel.picture, interpolation="antialiased")
    axis.set_title(panel.title, fontsize=_TITLE_FONT, parse_math=False)
    axis.set_axis_off()
