"""Shapes as COCO writes them: polygons, and run lengths as numbers or as text.

Shapes are drawn exactly: a pixel belongs to a shape that covers its centre.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.reading.pixels import Mask


def has_no_area(polygon: Any) -> bool:
    """Whether a polygon has fewer than three different points, or all of them on one line.

    Args:
        polygon: x0, y0, x1, y1, …

    Raises:
        ValueError: Not a list of numbers, or an odd number of them.
    """
    if not isinstance(polygon, list) or len(polygon) % 2 or not all(isinstance(one, (int, float)) for one in polygon):
        found = f"{len(polygon)} values" if isinstance(polygon, list) else type(polygon).__name__
        raise ValueError(f"expected a polygon x0, y0, x1, y1, x2, y2, … of finite numbers, got {found}")
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    other = next((point for point in points if point != points[0]), None)
    if other is None:
        return True
    (x, y), (u, v) = points[0], other
    return all((u - x) * (b - y) == (v - y) * (a - x) for a, b in points)


def meets(polygon: Sequence[float], size: tuple[int, int]) -> bool:
    """Whether the box around a polygon x0, y0, x1, y1, … overlaps an image (height, width)."""
    x, y = polygon[::2], polygon[1::2]
    return not (min(x) >= size[1] or max(x) <= 0 or min(y) >= size[0] or max(y) <= 0)  # NaN is refused when drawn


def polygon_area(polygon: Sequence[float]) -> float:
    """The area of a polygon x0, y0, x1, y1, … that does not cross itself, in square pixels."""
    x, y = np.asarray(polygon, np.float64).reshape(-1, 2).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def decode_compressed(text: str) -> list[int]:
    """Run lengths from the text that pycocotools, SAM, CVAT and others write.

    Each number is written in pieces of five bits, the lowest first, each as the character 48 + piece, + 32 if another
    follows; the highest bit of the last piece is the sign. From the fourth number on, what is written is the difference
    to the number two before.

    Args:
        text: "counts" of a segmentation.

    Returns:
        For `decode_runs`.

    Raises:
        ValueError: Characters that are none of these, or a text that ends within a number.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        piece = ord(letter) - 48
        if not 0 <= piece < 64:
            raise ValueError(f"expected compressed run lengths (characters 0 to o), got {letter!r}; export them again")
        value |= (piece & 31) << shift
        shift += 5
        if piece & 32:
            continue
        if piece & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("expected compressed run lengths, got a text that ends within a number; export them again")
    return counts


def fill_polygon(polygon: Sequence[float], size: tuple[int, int]) -> Mask:
    """Rasterise one polygon by the even-odd rule.

    A pixel (row, column) has its centre at (x, y) = (column + 0.5, row + 0.5), as in COCO. Each edge toggles, in every
    row whose centre line it crosses, the first pixel right of the crossing; running parities along the rows are the
    inside. Two polygons that share an edge therefore neither overlap nor leave a gap.

    Args:
        polygon: x0, y0, x1, y1, …; three points or more; parts outside the image are cut off.
        size: (height, width) of the image.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: An odd number of values, fewer than three points, or values that are not finite.
    """
    points = np.asarray(polygon, dtype=np.float64)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"expected a polygon x0, y0, x1, y1, x2, y2, … of finite numbers, got {len(points)} values")
    height, width = size
    start = points.reshape(-1, 2)
    end = np.roll(start, -1, axis=0)
    upper, lower = (np.where((start[:, 1] <= end[:, 1])[:, None], *pair) for pair in ((start, end), (end, start)))
    first, last = (np.ceil(side[:, 1] - 0.5).clip(0, height).astype(np.int64) for side in (upper, lower))
    counts = np.maximum(last - first, 0)  # rows whose centre line an edge crosses: upper <= row + 0.5 < lower
    edge = np.repeat(np.arange(len(start)), counts)
    row = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    slope = (lower[edge, 0] - upper[edge, 0]) / (lower[edge, 1] - upper[edge, 1])
    crossing = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * slope
    column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
    toggles = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(toggles, (row, column), 1)
    inside: Mask = np.cumsum(toggles[:, :width], axis=1) % 2 == 1
    return inside


def decode_runs(counts: Sequence[int], size: tuple[int, int]) -> Mask:
    """COCO's uncompressed run lengths: column by column, background first.

    Args:
        counts: Lengths of the runs.
        size: (height, width).

    Returns:
        (height, width) bool.

    Raises:
        ValueError: The runs do not fill the image.
    """
    height, width = size
    lengths = np.asarray(counts, dtype=np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"expected runs that fill {height} × {width} pixels, got a sum of {int(lengths.sum())}")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T
