"""Outlines with fewer corners that stay valid: no ring crosses or touches itself or another."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Array = np.ndarray[Any, np.dtype[Any]]
_FINE = 4
"""Corners are counted in quarters of a pixel, so that those where rings touch can be cut off in whole numbers."""
_SMALLEST_TOLERANCE = 0.3
"""In pixels; steps of whole pixels have no corner that less would drop."""
_PAIRS = 1 << 22


def simplify_rings(rings: Sequence[Array], tolerance: float) -> list[Array]:
    """Drop corners of one polygon's rings.

    Where the rings would cross or touch, a smaller tolerance is tried, half as large each time; what cannot be
    simplified stays exact.

    Args:
        rings: The outline and the holes, (n, 2) corners (x, y) along pixel edges, not closed; they may touch each other
            at corners.
        tolerance: How far a ring may move, in pixels; 0 = not at all.

    Returns:
        As many rings, int64, or float64 where corners were cut off because rings touched.
    """
    import cv2

    exact = [ring.astype(np.int64) for ring in rings]
    if tolerance < _SMALLEST_TOLERANCE:
        return exact
    fine = _cut_where_rings_touch(exact)
    while tolerance >= _SMALLEST_TOLERANCE:
        simple = [
            cv2.approxPolyDP(ring.astype(np.int32)[:, None], tolerance * _FINE, closed=True)[:, 0].astype(np.int64)
            for ring in fine
        ]
        if all(len(ring) >= 3 for ring in simple) and are_apart(simple):
            is_whole = all((ring % _FINE == 0).all() for ring in simple)
            return [ring // _FINE if is_whole else ring / _FINE for ring in simple]
        tolerance /= 2
    return exact


def _cut_where_rings_touch(rings: Sequence[Array]) -> list[Array]:
    """The rings in quarters of a pixel; a corner that two rings share becomes two, a quarter pixel before and after."""
    met = Counter(corner for ring in rings for corner in map(tuple, ring.tolist()))
    fine = []
    for ring in rings:
        is_shared = np.array([met[corner] > 1 for corner in map(tuple, ring.tolist())])
        scaled = ring * _FINE
        before, after = (np.sign(np.roll(ring, step, axis=0) - ring) for step in (1, -1))
        pairs = np.stack([scaled + before * is_shared[:, None], scaled + after * is_shared[:, None]], axis=1)
        keep = np.stack([np.ones_like(is_shared), is_shared], axis=1)
        fine.append(pairs[keep])
    return fine


def are_apart(rings: Sequence[Array]) -> bool:
    """Whether no two edges meet, but neighbours of one ring at their corner, and each hole lies in the outline alone.

    Args:
        rings: The outline and the holes: (n, 2) whole numbers, n >= 3, not closed.
    """
    starts = np.concatenate(rings)
    ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    lengths = [len(ring) for ring in rings]
    owner, first_of = np.repeat(np.arange(len(rings)), lengths), np.cumsum([0, *lengths])[:-1]
    following = np.arange(1, len(starts) + 1)
    following[first_of + lengths - 1] = first_of
    points = starts[first_of[1:]]  # one of each hole
    axis = int(np.ptp(starts[:, 1]) > np.ptp(starts[:, 0]))  # what overlaps along the longer side is compared
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    crossings = np.zeros((2, len(points)), np.int64)  # of a ray from each point with the outline, with other holes
    spans = (np.concatenate([edge[:, axis], points[:, axis]]) for edge in (low, high))
    for one, two in _overlapping(*spans):
        are_edges = (one < len(starts)) & (two < len(starts))
        first, second = one[are_edges], two[are_edges]
        is_near = ((low[first] <= high[second]) & (low[second] <= high[first])).all(axis=1)
        if _any_meet(starts, ends, following, first[is_near], second[is_near]):
            return False
        edge, hole = (part[(one < len(starts)) & (two >= len(starts))] for part in (one, two - len(starts)))
        counted = _ray_meets(points[hole], starts[edge], ends[edge], axis) & (owner[edge] != hole + 1)
        for row, chosen in enumerate((owner[edge] == 0, owner[edge] > 0)):
            crossings[row] += np.bincount(hole[counted & chosen], minlength=len(points))
    return bool((crossings[0] % 2 == 1).all() and (crossings[1] % 2 == 0).all())


def _overlapping(low: Array, high: Array) -> Iterator[tuple[Array, Array]]:
    """All pairs of intervals that overlap, by number, the one that begins first before the other; a part at a time."""
    order = np.argsort(low, kind="stable")
    counts = np.maximum(np.searchsorted(low[order], high[order], side="right") - np.arange(len(order)) - 1, 0)
    total = np.cumsum(counts)
    begin = 0
    while begin < len(order):
        done = int(total[begin - 1]) if begin else 0
        stop = max(begin + 1, int(np.searchsorted(total, done + _PAIRS, side="right")))
        amounts = counts[begin:stop]
        first = np.repeat(np.arange(begin, stop), amounts)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(amounts) - amounts, amounts)
        yield order[first], order[second]
        begin = stop


def _ray_meets(point: Array, start: Array, end: Array, axis: int) -> Array:
    """Whether a ray from a point across the axis meets an edge."""
    across = 1 - axis
    step, reached = end - start, point - start
    is_beside = (start[:, axis] <= point[:, axis]) != (end[:, axis] <= point[:, axis])
    turn = reached[:, axis] * step[:, across] - reached[:, across] * step[:, axis]
    is_met: Array = is_beside & (turn * np.sign(step[:, axis]) > 0)
    return is_met


def _any_meet(starts: Array, ends: Array, following: Array, one: Array, two: Array) -> bool:
    """Whether edges number ``one`` and ``two``, whose boxes meet, have a point in common that they may not have."""
    a, b, c, d = starts[one], ends[one], starts[two], ends[two]
    sides = [_side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)]
    meet = (sides[0] * sides[1] <= 0) & (sides[2] * sides[3] <= 0)
    are_neighbours = (following[one] == two) | (following[two] == one)
    # neighbours share a corner; they overlap only where the one turns back along the other
    turns_back = (sides[0] == 0) & (sides[1] == 0) & (((b - a) * (d - c)).sum(axis=1) < 0)
    return bool(np.where(are_neighbours, turns_back, meet).any())


def _side(a: Array, b: Array, point: Array) -> Array:
    """1, 0 or -1: on which side of the line from a to b a point lies."""
    step, reached = b - a, point - a
    side: Array = np.sign(step[:, 0] * reached[:, 1] - step[:, 1] * reached[:, 0])
    return side
