"""Plots (matplotlib, without a display): panels under a heading, predictions, a confusion matrix, samples of data."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.pixels import mark_missing
from castvision.ignored import IGNORED
from castvision.visualization.legend import MOST_ENTRIES, Entry, add_legend, class_entries, shorten
from castvision.visualization.pictures import (
    RGB,
    Labels,
    background_class,
    cluster_colours,
    display_picture,
    overlay_mask,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

Counts = np.ndarray[Any, np.dtype[Any]]

_DPI = 120
_CELL = 3.0
_LEGEND = 2.0
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


def plot_grid(panels: Sequence[Panel], heading: str, *, columns: int = 4, legend: Sequence[Entry] = ()) -> Figure:
    """Panels row by row under a heading.

    Args:
        panels: At least one.
        heading: Above the whole figure.
        columns: Panels a row, >= 1.
        legend: Beside them, of the masks in the panels.

    Returns:
        The figure; `as_png` turns it into a PNG.

    Raises:
        ValueError: No panels.
    """
    if not panels:
        raise ValueError("expected at least one panel, got none")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = columns * _CELL + (_LEGEND if legend else 0)
    figure = _new_figure(width, rows * (_CELL * _aspect(panels) + 0.5) + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel)
    _set_heading(figure, heading)
    add_legend(figure, legend)
    return figure


def plot_rows(rows: Sequence[Sequence[Panel]], heading: str, legend: Sequence[Entry] = ()) -> Figure:
    """One row of panels for each image.

    Args:
        rows: At least one row; rows may differ in length.
        heading: Above the whole sheet.
        legend: Beside it, of the masks in the panels.

    Returns:
        The figure.

    Raises:
        ValueError: No rows or an empty row.
    """
    if not rows or not all(rows):
        raise ValueError(f"expected non-empty rows of panels, got lengths {[len(row) for row in rows]}")
    columns = max(len(row) for row in rows)
    heights = [_CELL * _aspect(row) + 0.45 for row in rows]
    figure = _new_figure(columns * _CELL + (_LEGEND if legend else 0), sum(heights) + 0.5)
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axis in axes.ravel():
        axis.set_axis_off()
    for row_axes, row in zip(axes, rows, strict=True):
        for axis, panel in zip(row_axes, row, strict=False):
            _draw(axis, panel)
    _set_heading(figure, heading)
    add_legend(figure, legend)
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
    heights = np.arange(len(names))
    right.barh(heights, scores, height=0.42, color=[c / 255 for c in cluster_colours(len(names))], align="center")
    for height, name, score in zip(heights, names, scores, strict=True):
        label = f"{shorten(name, 34)}  {score:.3f}"
        right.text(0.008, height - 0.26, label, va="bottom", ha="left", fontsize=10, parse_math=False)
    right.set(xlim=(0, 1), ylim=(max(len(names), 3) - 0.5, -0.8), xlabel="probability")
    right.set_yticks([])
    right.spines[["top", "right"]].set_visible(False)
    _set_heading(figure, heading)
    return figure


def plot_segmentation(
    picture: RGB, overlay: RGB, mask: Labels, names: Sequence[str], heading: str, *, untinted: int | None = None
) -> Figure:
    """The picture, the overlaid mask, and beside them a legend with each present class's share of the pixels.

    Args:
        picture: (height, width, 3) uint8.
        overlay: The same size, the mask laid over it.
        mask: (rows, cols) class of each pixel, -1 where there is no data, which has no share.
        names: Class names.
        heading: Above the figure.
        untinted: The class the overlay leaves as it is.

    Returns:
        The figure.
    """
    figure = plot_grid([Panel("image", picture), Panel("prediction", overlay)], heading, columns=2)
    figure.set_size_inches(11.0, 4.3 * min(max(picture.shape[0] / picture.shape[1], 0.4), 1.6) + 1.2)
    classes, counts = np.unique(mask[mask >= 0], return_counts=True)
    largest = np.argsort(counts, kind="stable")[::-1]
    shares = [f" {counts[index] / counts.sum():.3f}" for index in largest]
    holes = [-1] if (mask < 0).any() else []
    entries = class_entries([*classes[largest], *holes], names, untinted, "no data")
    lines = min(len(shares), MOST_ENTRIES)  # further entries count the classes without a line, and what has no data
    named = zip(entries[:lines], shares, strict=False)
    add_legend(figure, [*(Entry(one.text + share, one.colour) for one, share in named), *entries[lines:]])
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
            axis.text(col, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=_TITLE_FONT)
    _set_heading(figure, heading)
    return figure


def visible(images: Tensor, mean: Sequence[float], std: Sequence[float], pixel_mask: Tensor | None = None) -> list[RGB]:
    """Undo a normalisation: each image as it looks in every other picture, see `to_picture`.

    Args:
        images: (B, C, height, width) float32, normalised; of more than three channels the first three are shown.
        mean: What was subtracted, per channel.
        std: What was divided by, per channel.
        pixel_mask: (B, height, width) bool, True where a pixel holds data; None = everywhere.

    Returns:
        (height, width, 3) uint8 for each image; what holds no data is black.
    """
    import torch

    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    values = (images.float().cpu() * scale + shift)[:, :3].permute(0, 2, 3, 1).numpy()
    is_known = np.ones(values.shape[:-1], bool) if pixel_mask is None else pixel_mask.cpu().numpy()
    shown = (mark_missing(image, known[..., None]) for image, known in zip(values, is_known, strict=True))
    return [display_picture(image) for image in shown]


def plot_samples(
    images: Sequence[RGB],
    targets: Tensor,
    names: Sequence[str],
    class_names: Sequence[str],
    heading: str,
) -> Figure:
    """Samples as a model gets them: images, masks laid over them, labels in the captions.

    Args:
        images: (height, width, 3) uint8 each, see `visible`.
        targets: (B,) labels, (B, classes) zeros and ones, or (B, height, width) labels, 255 = ignored.
        names: One for each image.
        class_names: One for each class.
        heading: Above the figure.

    Returns:
        The figure.
    """
    background = background_class(class_names)
    panels: list[Panel] = []
    for image, target, name in zip(images, targets, names, strict=True):
        caption = shorten(name, 34)
        if target.ndim < 2:
            labels = [int(target)] if target.ndim == 0 else target.nonzero()[:, 0].tolist()
            text = ", ".join(class_names[label] for label in labels) or "no label"
            panels.append(Panel(f"{caption}\n{shorten(text, 34)}", image))
            continue
        mask = target.numpy().copy()
        mask[mask == IGNORED] = -1  # drawn dark
        overlay = overlay_mask(image, mask, untinted=background)
        panels += [Panel(caption, image), Panel(_shares(mask, class_names), overlay)]
    legend: list[Entry] = []
    if targets.ndim == 3:
        present = sorted(set(targets.flatten().tolist()) - {IGNORED})
        present += [-1] if (targets == IGNORED).any() else []
        legend = class_entries(present, class_names, background, "ignored (255)")
    return plot_grid(panels, heading, columns=4, legend=legend)


def _shares(mask: Labels, class_names: Sequence[str]) -> str:
    """The two largest classes with their share of the pixels, and what is ignored."""
    counts = np.bincount(mask.ravel() + 1, minlength=len(class_names) + 1) / mask.size
    largest = sorted(range(len(class_names)), key=lambda label: -counts[label + 1])[:2]
    parts = [f"{shorten(class_names[label], 18)} {counts[label + 1]:.2f}" for label in largest if counts[label + 1] > 0]
    return ",\n".join(parts) + (f", ignored {counts[0]:.2f}" if counts[0] > 0 else "")


def as_png(figure: Figure) -> bytes:
    """Draw a figure with the Agg back end.

    Returns:
        The bytes of a PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # letters that the built-in font lacks are drawn as boxes
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
