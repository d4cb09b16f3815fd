"""Exact truth of an image: dense targets, and one sample with everything that is known about it.

Masks are drawn from the paddles and not by thresholding the finished image, where crossings are ambiguous. All
functions take a spec and a batch made with it (B samples of S x S pixels). A pixel belongs to a paddle where the
paddle's ink is above :data:`INK`. Where the ink of several overlaps, the path that joins the dots wins in semantic
masks; elsewhere the paddle that was placed first does, so that the long paths win over the distractors.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from castvision.data.synthetic.compiled import SOURCES, SPLITS, check_stream, entry_kernel, kernel
from castvision.data.synthetic.pathfinder.engine import PathfinderBatch, make_batch
from castvision.data.synthetic.pathfinder.search import ANCHOR_X, ANCHOR_Y, ORDER, SNAKE, STAMP, TIP_X, TIP_Y
from castvision.data.synthetic.pathfinder.spec import PathfinderSpec
from castvision.data.synthetic.pathfinder.tables import make_tables

INK = 64
"""Ink of a paddle (0..255) above which a pixel belongs to it; the thin paddles at 32 pixels reach about 135."""

OTHER, UNCONNECTED, JOINING = 0, 1, 2
"""Classes of a semantic mask."""

_SKIP = -1.0


def make_semantic_masks(spec: PathfinderSpec, batch: PathfinderBatch) -> NDArray[np.uint8]:
    """0 other, 1 a long path that does not join the dots, 2 the path that does: (B, S, S) uint8."""
    canvas = np.zeros(batch.images.shape, np.float32)
    long, joins = _roles(batch)
    paint(spec, batch, np.where(long & ~joins, float(UNCONNECTED), _SKIP), canvas)
    paint(spec, batch, np.where(joins, float(JOINING), _SKIP), canvas)
    return canvas.astype(np.uint8)


def make_instance_masks(spec: PathfinderSpec, batch: PathfinderBatch) -> NDArray[np.uint8]:
    """0 background, 1 and 2 the long paths, 3, 4, … the distractors: (B, S, S) uint8."""
    canvas = np.zeros(batch.images.shape, np.float32)
    used = np.arange(batch.paddles.shape[1]) < batch.counts[:, None]
    paint(spec, batch, np.where(used, batch.paddles[..., SNAKE] + 1.0, _SKIP), canvas)
    return canvas.astype(np.uint8)


def make_ordinal_masks(spec: PathfinderSpec, batch: PathfinderBatch) -> NDArray[np.float32]:
    """Position along a long path, 0 at its start to 1 at its end; -1 elsewhere: (B, S, S) float32."""
    canvas = np.full(batch.images.shape, -1, np.float32)
    long, _ = _roles(batch)
    paint(spec, batch, np.where(long, batch.paddles[..., ORDER] / (spec.contour_length - 1), _SKIP), canvas)
    return canvas


def make_gap_free_masks(spec: PathfinderSpec, batch: PathfinderBatch) -> NDArray[np.uint8]:
    """As semantic masks, but each path is one line through its anchors, as thick as a paddle, at least a pixel."""
    canvas = np.zeros(batch.images.shape, np.uint8)
    half = max(0.5, spec.paddle_thickness / 2)
    paddles = np.ascontiguousarray(batch.paddles[:, : 2 * spec.contour_length])
    _paint_lines(paddles, 1 - batch.paths, np.full_like(batch.labels, UNCONNECTED), half, canvas)
    _paint_lines(paddles, batch.paths, np.where(batch.labels == 1, JOINING, UNCONNECTED), half, canvas)
    return canvas


def make_endpoint_maps(spec: PathfinderSpec, batch: PathfinderBatch) -> NDArray[np.float32]:
    """Higher of two Gaussians on the dots, their standard deviation the dots' radius: (B, S, S) float32 in 0..1."""
    squared = (np.arange(spec.img_size) - batch.dots[..., None]) ** 2  # B, dots, (y, x), S
    distance = squared[:, :, 0, :, None] + squared[:, :, 1, None, :]  # B, dots, S, S
    return np.asarray(np.exp(-distance / (2 * spec.marker_radius**2)).max(1), np.float32)


def _roles(batch: PathfinderBatch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which paddles (B, P) belong to a long path, and which of them to the one that joins the dots."""
    used = np.arange(batch.paddles.shape[1]) < batch.counts[:, None]
    snake = batch.paddles[..., SNAKE]
    return used & (snake < 2), used & (snake == batch.paths[:, None]) & (batch.labels[:, None] == 1)


def paint(
    spec: PathfinderSpec, batch: PathfinderBatch, values: NDArray[np.float64], canvas: NDArray[np.float32]
) -> None:
    """Paint the ink of each paddle with its value (B, P) on (B, S, S), where it is not below 0; earlier rows win."""
    for which, margin in enumerate(spec.paddle_margins):
        chosen = np.where(batch.margins[:, None] == which, values, _SKIP)
        _paint_paddles(make_tables(spec, margin).ink, batch.paddles, chosen, canvas)


@entry_kernel
def _paint_paddles(
    ink: NDArray[np.uint8],
    paddles: NDArray[np.int32],
    values: NDArray[np.float64],
    canvas: NDArray[np.float32],
    sources: int = SOURCES,
) -> None:
    size, radius = canvas.shape[1], ink.shape[1] // 2
    for i in range(len(paddles)):
        for row in range(paddles.shape[1] - 1, -1, -1):
            if values[i, row] < 0:
                continue
            top, left = paddles[i, row, TIP_Y] - radius, paddles[i, row, TIP_X] - radius
            stamp = ink[paddles[i, row, STAMP]]
            for y in range(max(0, -top), min(2 * radius + 1, size - top)):
                for x in range(max(0, -left), min(2 * radius + 1, size - left)):
                    if stamp[y, x] > INK:
                        canvas[i, top + y, left + x] = values[i, row]


@kernel
def paint_segment(canvas: np.ndarray, start: tuple[int, int], end: tuple[int, int], half: float, value: int) -> None:
    """Set the pixels within ``half`` of the segment between two pixels."""
    size = canvas.shape[0]
    reach = int(np.ceil(half))
    dy, dx = end[0] - start[0], end[1] - start[1]
    length = max(1, dy * dy + dx * dx)
    for y in range(max(0, min(start[0], end[0]) - reach), min(size, max(start[0], end[0]) + reach + 1)):
        for x in range(max(0, min(start[1], end[1]) - reach), min(size, max(start[1], end[1]) + reach + 1)):
            along = min(1.0, max(0.0, ((y - start[0]) * dy + (x - start[1]) * dx) / length))
            off_y, off_x = y - start[0] - along * dy, x - start[1] - along * dx
            if off_y * off_y + off_x * off_x <= half * half + 1e-9:
                canvas[y, x] = value


@entry_kernel
def _paint_lines(
    paddles: NDArray[np.int32],
    path: NDArray[np.int64],
    value: NDArray[np.int64],
    half: float,
    canvas: NDArray[np.uint8],
    sources: int = SOURCES,
) -> None:
    """Paint one path of each sample, whose ``paddles`` are those of the two long paths only, as a line."""
    for i in range(len(paddles)):
        y, x = paddles[i, path[i], TIP_Y], paddles[i, path[i], TIP_X]
        for row in range(path[i] + 2, paddles.shape[1], 2):
            next_y, next_x = paddles[i, row, ANCHOR_Y], paddles[i, row, ANCHOR_X]
            paint_segment(canvas[i], (y, x), (next_y, next_x), half, value[i])
            y, x = next_y, next_x
        row = path[i] + paddles.shape[1] - 2
        paint_segment(canvas[i], (y, x), (paddles[i, row, TIP_Y], paddles[i, row, TIP_X]), half, value[i])


@dataclass(frozen=True, eq=False)
class PathfinderSample:
    """An image of S x S pixels and its truth (for overlaps see the module).

    Attributes:
        image: (S, S) uint8, 0..255.
        label: 1 if the two dots mark the ends of one path.
        semantic: (S, S) uint8: 0 other, 1 a long path that does not join the dots, 2 the path that does.
        instances: (S, S) uint8: 0 background, 1 and 2 the long paths, 3, 4, … the distractors.
        gap_free: (S, S) uint8: as ``semantic``, but each long path is one line without gaps.
        ordinal: (S, S) float32: position along its long path, 0 at the start to 1 at the end; -1 elsewhere.
        endpoints: (S, S) float32 in 0..1: a Gaussian on each dot.
        dots: (2, 2) int32: (y, x) of the two dots.
        margin: Paddle margin that was drawn for this image.
        paddles: (P, 7) int32: snake (0 and 1 are the long paths), position along it, tip (y, x), anchor (y, x),
            number of the stamp. A paddle starts at its tip; a path runs through its anchors. The first rows are the
            paddles of the long paths in turn.
    """

    image: NDArray[np.uint8]
    label: int
    semantic: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    gap_free: NDArray[np.uint8]
    ordinal: NDArray[np.float32]
    endpoints: NDArray[np.float32]
    dots: NDArray[np.int32]
    margin: int
    paddles: NDArray[np.int32]


def make_pathfinder(
    spec: PathfinderSpec, seed: int, split: str, index: SupportsIndex, *, label: int | None = None
) -> PathfinderSample:
    """The sample of a (seed, split, index): always the same, whatever else is made beside it.

    Args:
        spec: What to draw, for example ``PathfinderSpec.lra(32)``.
        seed: Of the whole set, at least 0.
        split: "train", "val", "test" or "written" (the sets on disk).
        index: Number of the sample, at least 0.
        label: Force 0 or 1; None draws it. Paths and distractors stay the same.

    Raises:
        ValueError: An unknown split or label, a number below 0, or paths too long for the image.
        TypeError: A number that is not whole.
    """
    check_stream(seed, split, index)
    if label not in (None, 0, 1):
        raise ValueError(f"expected label to be 0, 1 or None, got {label=}")
    batch = make_batch(spec, seed, SPLITS[split], np.array([operator.index(index)], np.int64), label)
    return PathfinderSample(
        image=batch.images[0],
        label=int(batch.labels[0]),
        semantic=make_semantic_masks(spec, batch)[0],
        instances=make_instance_masks(spec, batch)[0],
        gap_free=make_gap_free_masks(spec, batch)[0],
        ordinal=make_ordinal_masks(spec, batch)[0],
        endpoints=make_endpoint_maps(spec, batch)[0],
        dots=batch.dots[0],
        margin=spec.paddle_margins[batch.margins[0]],
        paddles=batch.paddles[0, : batch.counts[0]],
    )
