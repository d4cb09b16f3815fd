"""Dense targets, drawn from the paddles and not by thresholding the finished image, where crossings are ambiguous.

All functions take a spec and a batch made with it (B samples of S x S pixels). A pixel belongs to a paddle where the
paddle's ink is above :data:`INK`. Where the ink of several overlaps, the path that joins the dots wins in semantic
masks; elsewhere the paddle that was placed first does, so that the long paths win over the distractors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from castvision.data.synthetic.pathfinder.chains import ANCHOR_X, ANCHOR_Y, ORDER, SNAKE, TIP_X, TIP_Y
from castvision.data.synthetic.pathfinder.compiled import entry_kernel, sources_digest
from castvision.data.synthetic.pathfinder.drawing import paint_ink, paint_segment
from castvision.data.synthetic.pathfinder.engine import Batch
from castvision.data.synthetic.pathfinder.spec import PathfinderSpec
from castvision.data.synthetic.pathfinder.tables import make_tables

INK = 64
"""Ink of a paddle (0..255) above which a pixel belongs to it; the thin paddles at 32 pixels reach about 135."""

OTHER, UNCONNECTED, JOINING = 0, 1, 2
"""Classes of a semantic mask."""

_SKIP = -1.0


def make_semantic_masks(spec: PathfinderSpec, batch: Batch) -> NDArray[np.uint8]:
    """0 other, 1 a long path that does not join the dots, 2 the path that does: (B, S, S) uint8."""
    canvas = np.zeros(batch.images.shape, np.float32)
    long, joins = _roles(batch)
    paint(spec, batch, np.where(long & ~joins, float(UNCONNECTED), _SKIP), canvas)
    paint(spec, batch, np.where(joins, float(JOINING), _SKIP), canvas)
    return canvas.astype(np.uint8)


def make_instance_masks(spec: PathfinderSpec, batch: Batch) -> NDArray[np.uint8]:
    """0 background, 1 and 2 the long paths, 3, 4, … the distractors: (B, S, S) uint8."""
    canvas = np.zeros(batch.images.shape, np.float32)
    used = np.arange(batch.paddles.shape[1]) < batch.counts[:, None]
    paint(spec, batch, np.where(used, batch.paddles[..., SNAKE] + 1.0, _SKIP), canvas)
    return canvas.astype(np.uint8)


def make_ordinal_masks(spec: PathfinderSpec, batch: Batch) -> NDArray[np.float32]:
    """Place along a long path, 0 at its start to 1 at its end; -1 elsewhere: (B, S, S) float32."""
    canvas = np.full(batch.images.shape, -1, np.float32)
    long, _ = _roles(batch)
    paint(spec, batch, np.where(long, batch.paddles[..., ORDER] / (spec.contour_length - 1), _SKIP), canvas)
    return canvas


def make_gap_free_masks(spec: PathfinderSpec, batch: Batch) -> NDArray[np.uint8]:
    """As semantic masks, but each path is one line through its anchors, as thick as a paddle, at least a pixel."""
    canvas = np.zeros(batch.images.shape, np.uint8)
    half = max(0.5, spec.paddle_thickness / 2)
    joined = batch.labels == 1
    for path, value in (
        (1 - batch.paths, np.full_like(batch.labels, UNCONNECTED)),
        (batch.paths, joined + UNCONNECTED),
    ):
        _paint_lines(batch.paddles, path, value, spec.contour_length, half, canvas)
    return canvas


def make_endpoint_maps(spec: PathfinderSpec, batch: Batch) -> NDArray[np.float32]:
    """Higher of two Gaussians on the dots, their standard deviation the dots' radius: (B, S, S) float32 in 0..1."""
    squared = (np.arange(spec.img_size) - batch.dots[..., None]) ** 2  # B, dots, (y, x), S
    distance = squared[:, :, 0, :, None] + squared[:, :, 1, None, :]  # B, dots, S, S
    return np.asarray(np.exp(-distance / (2 * spec.marker_radius**2)).max(1), np.float32)


def _roles(batch: Batch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which paddles (B, P) belong to a long path, and which of them to the one that joins the dots."""
    used = np.arange(batch.paddles.shape[1]) < batch.counts[:, None]
    snake = batch.paddles[..., SNAKE]
    return used & (snake < 2), used & (snake == batch.paths[:, None]) & (batch.labels[:, None] == 1)


def paint(spec: PathfinderSpec, batch: Batch, values: NDArray[np.float64], canvas: NDArray[np.float32]) -> None:
    """Paint the ink of every paddle with its value (B, P) on (B, S, S), below zero: not; the earlier row wins."""
    for which, margin in enumerate(spec.paddle_margins):
        chosen = np.where(batch.margins[:, None] == which, values, _SKIP)
        _paint_paddles(make_tables(spec, margin).ink, batch.paddles, chosen, INK, canvas)


def _build_paint_paddles(sources: int) -> Callable[..., None]:
    @entry_kernel
    def paint_paddles(
        ink: NDArray[np.uint8],
        paddles: NDArray[np.int32],
        values: NDArray[np.float64],
        threshold: int,
        canvas: NDArray[np.float32],
    ) -> None:
        if sources < 0:  # never; see sources_digest
            return
        for i in range(len(paddles)):
            for row in range(paddles.shape[1] - 1, -1, -1):
                if values[i, row] >= 0:
                    paint_ink(ink, paddles[i], row, (threshold, values[i, row]), canvas[i])

    return paint_paddles


def _build_paint_lines(sources: int) -> Callable[..., None]:
    @entry_kernel
    def paint_lines(
        paddles: NDArray[np.int32],
        path: NDArray[np.int64],
        value: NDArray[np.int64],
        length: int,
        half: float,
        canvas: NDArray[np.uint8],
    ) -> None:
        if sources < 0:  # never; see sources_digest
            return
        for i in range(len(paddles)):
            y, x = paddles[i, path[i], TIP_Y], paddles[i, path[i], TIP_X]
            for row in range(path[i] + 2, 2 * length, 2):
                next_y, next_x = paddles[i, row, ANCHOR_Y], paddles[i, row, ANCHOR_X]
                paint_segment(canvas[i], (y, x), (next_y, next_x), half, value[i])
                y, x = next_y, next_x
            row = path[i] + 2 * (length - 1)
            paint_segment(canvas[i], (y, x), (paddles[i, row, TIP_Y], paddles[i, row, TIP_X]), half, value[i])

    return paint_lines


_paint_paddles = _build_paint_paddles(sources_digest())
_paint_lines = _build_paint_lines(sources_digest())
