"""Shapes that people draw on images, and which pixels they cover: those whose centre lies inside."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from castvision.data.datasets.coco_shapes import fill_polygon, has_no_area
from castvision.data.reading.folders import nfc

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from castvision.data.reading.pixels import Mask

Covered = tuple[int, int, "Mask"]
"""First row, first column, and (height, width) which of the pixels from there on."""


@dataclass(frozen=True)
class Outline:
    """A polygon: (x, y) of its corners, in pixels from the image's upper left corner."""

    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Oval:
    """A circle or an ellipse.

    Attributes:
        x: Of the centre.
        y: Of the centre.
        across: Half of the width.
        down: Half of the height.
        degrees: Turned clockwise.
    """

    x: float
    y: float
    across: float
    down: float
    degrees: float = 0.0


@dataclass(frozen=True, eq=False)
class Bitmap:
    """Pixels (height, width) bool, the first at row ``y`` and column ``x``."""

    y: int
    x: int
    mask: Mask


@dataclass(frozen=True)
class Shape:
    """One shape of a class.

    Attributes:
        label: The class as the tool names it; kept as `class_name`.
        form: What is covered.
        is_box: Whether it is a rectangle, which may stand around an object and not for it.
    """

    label: str
    form: Outline | Oval | Bitmap
    is_box: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", class_name(self.label))


@dataclass
class AnnotatedImage:
    """An image, and what was drawn on it.

    Attributes:
        name: Path below the folder of all images.
        where: The file and the entry that say so, for messages.
        path: The image's file; None = it stands in the annotation file.
        embedded: The bytes of that file, if they do.
        size: (height, width) as the tool states it; None = not stated.
        shapes: In the order in which they lie over each other, the lowest first.
        split: "train", "val" or "test", if the export says so.
    """

    name: str
    where: str
    path: Path | None = None
    embedded: bytes | None = field(default=None, repr=False)
    size: tuple[int, int] | None = None
    shapes: list[Shape] = field(default_factory=list)
    split: str | None = None


@dataclass
class Annotations:
    """What an export holds.

    Attributes:
        images: Those that somebody annotated; without shapes, if there was nothing to draw.
        class_names: As the tool lists them; None = it keeps no list.
        left_out: Entries without an area, by kind: points, lines, tags, images nobody has annotated.
    """

    images: list[AnnotatedImage] = field(default_factory=list)
    class_names: list[str] | None = None
    left_out: Counter[str] = field(default_factory=Counter)


def class_name(text: str) -> str:
    """A class's name in composed Unicode and on one line, as a list of classes holds it."""
    return nfc(" ".join(text.split()))


def covered(form: Outline | Oval | Bitmap, size: tuple[int, int]) -> Covered | None:
    """Which pixels a shape covers.

    Args:
        form: The shape.
        size: (height, width) of the image; what lies outside is cut off.

    Returns:
        None if no pixel's centre lies inside.
    """
    if isinstance(form, Outline):
        found = _of_outline(form, size)
    elif isinstance(form, Oval):
        found = _of_oval(form, size)
    else:
        found = _of_bitmap(form, size)
    return found if found is not None and found[2].any() else None


def _of_outline(form: Outline, size: tuple[int, int]) -> Covered | None:
    flat = [value for point in form.points for value in point]
    if has_no_area(flat):
        return None
    columns, rows = zip(*form.points, strict=True)
    y, x, height, width = _frame((min(rows), max(rows)), (min(columns), max(columns)), size)
    if min(height, width) < 1:
        return None
    shifted = np.asarray(flat, np.float64) - np.tile((x, y), len(form.points))
    return y, x, fill_polygon(shifted.tolist(), (height, width))


def _of_oval(form: Oval, size: tuple[int, int]) -> Covered | None:
    if min(form.across, form.down) <= 0:
        return None
    cosine, sine = math.cos(math.radians(form.degrees)), math.sin(math.radians(form.degrees))
    wide = math.hypot(form.across * cosine, form.down * sine)
    tall = math.hypot(form.across * sine, form.down * cosine)
    y, x, height, width = _frame((form.y - tall, form.y + tall), (form.x - wide, form.x + wide), size)
    if min(height, width) < 1:
        return None
    down = (np.arange(y, y + height) + 0.5 - form.y)[:, None]
    across = (np.arange(x, x + width) + 0.5 - form.x)[None]
    along = (across * cosine + down * sine) / form.across
    athwart = (down * cosine - across * sine) / form.down
    return y, x, along**2 + athwart**2 <= 1


def _of_bitmap(form: Bitmap, size: tuple[int, int]) -> Covered | None:
    tall, wide = form.mask.shape
    y, x, height, width = _frame((form.y, form.y + tall), (form.x, form.x + wide), size)
    if min(height, width) < 1:
        return None
    return y, x, form.mask[y - form.y : y - form.y + height, x - form.x : x - form.x + width]


def _frame(rows: tuple[float, float], columns: tuple[float, float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """(row, column, height, width) of the pixels of an image that a shape of such an extent can cover."""
    (top, bottom), (left, right) = (
        (max(math.floor(low), 0), min(math.ceil(high), length))
        for (low, high), length in zip((rows, columns), size, strict=True)
    )
    return top, left, bottom - top, right - left


def turned_box(x: float, y: float, width: float, height: float, degrees: float, around: str = "centre") -> Outline:
    """A rectangle turned clockwise.

    Args:
        x: Of its upper left corner before it is turned.
        y: Likewise.
        width: Of its upper side.
        height: Of its left side.
        degrees: How far.
        around: "centre", or "corner": the upper left one.
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    middle_x, middle_y = (x + width / 2, y + height / 2) if around == "centre" else (x, y)
    corners = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    offsets = ((left - middle_x, top - middle_y) for left, top in corners)
    return Outline(
        tuple((middle_x + dx * cosine - dy * sine, middle_y + dx * sine + dy * cosine) for dx, dy in offsets)
    )


def numbers(values: Iterable[object], count: int | None = None) -> list[float]:
    """Finite numbers, of numbers or text.

    Args:
        values: What an export has.
        count: How many there must be; None = any number.

    Raises:
        ValueError: Others, or another number of them.
    """
    given = list(values)
    try:
        found = [float(value) for value in given]  # type: ignore[arg-type]  # what is no number is refused here
    except (TypeError, ValueError):
        found = []
    if len(found) != len(given) or not all(map(math.isfinite, found)) or (count is not None and len(found) != count):
        wanted = "finite numbers" if count is None else f"{count} finite numbers"
        raise ValueError(f"expected {wanted}, got {str(given)[:80]}")
    return found


def points_of(pairs: Sequence[Sequence[object]]) -> tuple[tuple[float, float], ...]:
    """Corners from lists of x and y.

    Raises:
        ValueError: Others than pairs of finite numbers.
    """
    if not all(isinstance(pair, (list, tuple)) for pair in pairs):
        raise ValueError(f"expected points as pairs of x and y, got {str(pairs)[:80]}")
    return tuple((x, y) for x, y in (numbers(pair, 2) for pair in pairs))


def bitmap_of_runs(runs: Sequence[float], size: tuple[int, int]) -> Mask:
    """(height, width) bool of the lengths of runs along the rows, outside and inside in turn.

    Raises:
        ValueError: They do not fill it.
    """
    lengths = np.asarray(runs, np.int64)
    if (lengths < 0).any() or lengths.sum() != size[0] * size[1]:
        raise ValueError(f"expected runs that fill {size[0]} × {size[1]} pixels, got a sum of {int(lengths.sum())}")
    mask: Mask = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(size)
    return mask
