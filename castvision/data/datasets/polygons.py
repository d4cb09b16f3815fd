"""Polygons and run lengths to pixels, exactly: a pixel belongs to a shape that covers its centre."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

Mask = np.ndarray[Any, np.dtype[np.bool_]]


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
