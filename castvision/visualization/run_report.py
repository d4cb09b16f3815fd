"""The picture of a run: curves, confusion matrix, held-out examples with predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.files import draft
from castvision.ignored import IGNORED
from castvision.visualization.legend import add_legend, class_entries
from castvision.visualization.pictures import RGB, background_class, overlay_mask
from castvision.visualization.plots import as_png, visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

_COLUMNS = 6
_CELL = (2.0, 1.9)
"""Width and height of an example in inches."""
_TEXT = 0.32
"""Inches of it for two lines of text."""
_MOST_CURVES = 10


@dataclass(frozen=True)
class Examples:
    """Held-out images and what was said of them.

    Attributes:
        images: (B, C, height, width), normalised.
        targets: (B,) or (B, height, width) int64, or (B, classes) zeros and ones.
        predicted: Like ``targets``.
        mean: What was subtracted, per channel.
        std: What was divided by, per channel.
        pixel_mask: (B, height, width) bool, True where a pixel holds data; None = everywhere.
    """

    images: Tensor
    targets: Tensor
    predicted: Tensor
    mean: Sequence[float]
    std: Sequence[float]
    pixel_mask: Tensor | None = None


def save_report(
    path: Path,
    title: str,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    confusion: Tensor | None,
    class_names: Sequence[str],
    examples: Examples | None,
) -> None:
    """Draw and write the picture.

    Args:
        path: A ``.png``; written whole or not at all.
        title: Above everything.
        curves: (step, value) pairs by name.
        confusion: (classes, classes) counts, rows = truth.
        class_names: One for each class.
        examples: Drawn below.
    """
    # NOTE: no pyplot: it would look for a display and keep the figure alive.
    from matplotlib.figure import Figure

    has_masks = examples is not None and examples.targets.ndim == 3
    rows = 0 if examples is None else -(-len(examples.images) // _COLUMNS) * (3 if has_masks else 1)
    figure = Figure(figsize=(_COLUMNS * _CELL[0], 4 + _CELL[1] * rows), dpi=110, layout="constrained")
    figure.suptitle(title)
    top, *below = figure.subfigures(
        2 if rows else 1, 1, height_ratios=[4, _CELL[1] * rows] if rows else None, squeeze=False
    )
    axes = top[0].subplots(1, 3)
    _draw_curves(axes[0], curves, "loss")
    _draw_curves(axes[1], curves, "score")
    _draw_confusion(axes[2], confusion, class_names)
    if examples is not None and rows:
        _draw_examples(below[0][0], examples, class_names, rows)
    with draft(path) as temporary:
        temporary.write_bytes(as_png(figure))


def _draw_curves(axes: Any, curves: Mapping[str, Sequence[tuple[int, float]]], which: str) -> None:
    scores = ["val/acc1", "val/miou", "val/macro_f1", "val/boundary_f1", "val/map", "val/f1"]
    scores += ["val/cosine", "val/unexplained"]
    names = {"loss": ["train/loss", "val/loss"], "score": scores}[which]
    per_class = [name for name in curves if name.startswith("val/iou_")]
    if which == "score" and len(per_class) <= _MOST_CURVES:
        names += per_class
    for name in names:
        if name in curves:
            steps, values = zip(*curves[name], strict=True)
            axes.plot(steps, values, label=name, linewidth=1.2, marker="." if len(steps) < 40 else None)
    axes.set_xlabel("step")
    axes.set_title(which)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8)


def _draw_confusion(axes: Any, confusion: Tensor | None, class_names: Sequence[str]) -> None:
    axes.set_title("confusion, share of each true class")
    if confusion is None:
        axes.text(0.5, 0.5, "none", ha="center", va="center")
        axes.set_axis_off()
        return
    shares = confusion.double() / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(class_names) <= 12:
        size = 8 if len(class_names) <= 6 else 5.5
        axes.set_xticks(range(len(class_names)), class_names, rotation=30, ha="right", fontsize=8)
        axes.set_yticks(range(len(class_names)), class_names, fontsize=8)
        for row, col in ((row, col) for row in range(len(class_names)) for col in range(len(class_names))):
            colour = "white" if shares[row, col] > 0.6 else "black"
            axes.text(col, row, f"{shares[row, col]:.2f}", ha="center", va="center", color=colour, fontsize=size)


def _draw_examples(figure: Any, examples: Examples, class_names: Sequence[str], rows: int) -> None:
    axes = figure.subplots()  # one for all: each of dozens would be laid out by itself, for seconds
    has_masks = examples.targets.ndim == 3
    background = background_class(class_names)
    seen: set[int] = set()
    pictures = visible(examples.images, examples.mean, examples.std, examples.pixel_mask)
    for index, picture in enumerate(pictures):
        row, col = (3 if has_masks else 1) * (index // _COLUMNS), index % _COLUMNS
        target, predicted = examples.targets[index], examples.predicted[index]
        if not has_masks:
            is_right = bool((target == predicted).all())
            text = _name(predicted, class_names) + ("" if is_right else f"\n(true: {_name(target, class_names)})")
            _place(axes, picture, row, col, text, "green" if is_right else "firebrick")
            continue
        _place(axes, picture, row, col)
        for below, (name, mask) in enumerate((("truth", target), ("prediction", predicted)), start=1):
            labels = mask.numpy().astype(np.int64)
            labels[target.numpy() == IGNORED] = -1  # drawn dark
            seen.update(np.unique(labels).tolist())
            _place(axes, overlay_mask(picture, labels, untinted=background), row + below, col, name)
    axes.set(xlim=(0, _COLUMNS * _CELL[0]), ylim=(rows * _CELL[1], 0), aspect="equal", anchor="N")
    axes.set_axis_off()
    if has_masks:
        present = [*sorted(seen - {-1}), *(seen & {-1})]
        add_legend(figure, class_entries(present, class_names, background, "ignored (255)"))


def _place(axes: Any, picture: RGB, row: int, col: int, text: str = "", colour: str = "black") -> None:
    """Draw a picture into its cell, whose unit is the inch, as large as its sides allow, with text above."""
    height, width = picture.shape[:2]
    scale = min(0.94 * _CELL[0] / width, (_CELL[1] - _TEXT) / height)
    middle, top = (col + 0.5) * _CELL[0], row * _CELL[1] + _TEXT
    half = scale * width / 2
    extent = (middle - half, middle + half, top + scale * height, top)
    axes.imshow(picture, interpolation="antialiased", extent=extent)
    if text:
        axes.text(middle, top - 0.03, text, ha="center", va="bottom", fontsize=8, color=colour, parse_math=False)


def _name(target: Tensor, class_names: Sequence[str]) -> str:
    """The class of a label (), or all names of zeros and ones (classes,)."""
    if target.ndim == 0:
        return class_names[int(target)]
    return ", ".join(class_names[label] for label in target.nonzero()[:, 0].tolist()) or "nothing"
