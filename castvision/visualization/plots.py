"""Plots (matplotlib, without a display): panels under a heading, predictions, a confusion matrix, samples of data."""

from __future__ import annotations

import io
import math
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.losses import IGNORED
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

_DARK = 0.25
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
    """Cut the middle out of a text longer than ``length``: a file's name keeps its beginning and its end.

    Bytes of it that are no text, which no font can draw, are shown as "�".
    """
    text = "".join(letter if letter.isprintable() or letter.isspace() else "\ufffd" for letter in text)
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
    heights = np.arange(len(names))
    right.barh(heights, scores, height=0.42, color=[c / 255 for c in cluster_colours(len(names))], align="center")
    for height, name, score in zip(heights, names, scores, strict=True):
        label = f"{shorten(name, 34)}  {score:.1%}"
        right.text(0.008, height - 0.26, label, va="bottom", ha="left", fontsize=10, parse_math=False)
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
    for index in np.argsort(counts)[::-1][:12]:
        number, share = int(classes[index]), counts[index] / mask.size
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


def visible(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Undo a normalisation, one range of values for all images.

    The range is 0..1 where the values keep to it, give or take a change of colours; of floats in other units, and of
    images that are dark, it is 2.5 standard deviations to both sides of the mean.

    Args:
        images: (B, C, height, width) float32, normalised.
        mean: What was subtracted, per channel.
        std: What was divided by, per channel.

    Returns:
        (B, height, width, C) uint8.
    """
    import torch

    shift, scale = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    values = images * scale + shift
    low, span = torch.zeros_like(shift), torch.ones_like(scale)
    is_dark = np.percentile(values.numpy(), 99.9) < _DARK  # such as 12 bits in 16: black to the eye
    if values.min() < -0.5 or values.max() > 1.5 or is_dark:
        low, span = shift - 2.5 * scale, 5 * scale
    shown = ((values - low) / span).clamp(0, 1) * 255
    return shown.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def plot_samples(
    images: np.ndarray[Any, np.dtype[np.uint8]],
    targets: Tensor,
    names: Sequence[str],
    class_names: Sequence[str],
    heading: str,
) -> Figure:
    """Samples as a model gets them: images, masks laid over them, labels in the captions.

    Args:
        images: (B, height, width, C) uint8, see `visible`.
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
        shown, caption = display_picture(image), shorten(name, 34)
        if target.ndim < 2:
            labels = [int(target)] if target.ndim == 0 else target.nonzero()[:, 0].tolist()
            text = ", ".join(class_names[label] for label in labels) or "no label"
            panels.append(Panel(f"{caption}\n{shorten(text, 34)}", shown))
            continue
        mask = target.numpy().copy()
        mask[mask == IGNORED] = -1  # drawn dark
        overlay = overlay_mask(shown, mask, untinted=background)
        panels += [Panel(caption, shown), Panel(_shares(mask, class_names), overlay)]
    figure = plot_grid(panels, heading, columns=4)
    if targets.ndim == 3:
        from matplotlib.patches import Patch

        colours = cluster_colours(len(class_names)) / 255
        handles = []
        for label in sorted(set(targets.flatten().tolist()) - {IGNORED})[:20]:
            face = "none" if label == background else tuple(colours[label])
            handles.append(Patch(facecolor=face, edgecolor="0.5", label=shorten(class_names[label], 26)))
        if (targets == IGNORED).any():
            handles.append(Patch(facecolor="0.15", edgecolor="0.5", label="ignored (255)"))
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _shares(mask: Labels, class_names: Sequence[str]) -> str:
    """The two largest classes with their share of the pixels, and what is ignored."""
    counts = np.bincount(mask.ravel() + 1, minlength=len(class_names) + 1) / mask.size
    largest = sorted(range(len(class_names)), key=lambda label: -counts[label + 1])[:2]
    parts = [f"{shorten(class_names[label], 18)} {counts[label + 1]:.0%}" for label in largest if counts[label + 1] > 0]
    return ", ".join([*parts, *([f"ignored {counts[0]:.0%}"] if counts[0] > 0 else [])])


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
