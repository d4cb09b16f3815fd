"""One Pathfinder image with everything that is known about it: label and exact masks, drawn from the paddles."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from castvision.data.pathfinder.chains import ORDER, SNAKE, STAMP, TIP_X, TIP_Y
from castvision.data.pathfinder.engine import Batch, make_batch
from castvision.data.pathfinder.spec import PathfinderSpec
from castvision.data.pathfinder.tables import Tables, make_tables

Split = Literal["train", "val", "test", "written"]
SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2, "written": 3}
"""Numbers of the splits: the same index gives another image in each."""

INK = 64
"""Ink of a paddle (0…255) above which a pixel belongs to it."""

OTHER, UNCONNECTED, JOINING = 0, 1, 2
"""Classes of a semantic mask."""


@dataclass(frozen=True)
class PathfinderSample:
    """An image of S x S pixels and its truth.

    Attributes:
        image: (S, S) uint8, 0…255.
        label: 1 if the two dots mark the ends of one path.
        semantic: (S, S) uint8: 0 other, 1 a long path that does not join the dots, 2 the path that does. Where paths
            cross, the joining one wins.
        instances: (S, S) uint8: 0 background, then 1 + number of the snake (the long paths are 1 and 2); later drawn
            snakes win, long paths over distractors.
        gap_free: (S, S) uint8: as ``semantic``, but each long path is one line without gaps, through its paddles' tips.
        ordinal: (S, S) float32: position along its long path, 0 at the start to 1 at the end; -1 elsewhere.
        dots: (2, 2) int: (y, x) of the two dots.
        margin: Paddle margin that was drawn for this image.
    """

    image: NDArray[np.uint8]
    label: int
    semantic: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    gap_free: NDArray[np.uint8]
    ordinal: NDArray[np.float32]
    dots: NDArray[np.int32]
    margin: int


def make_pathfinder(
    spec: PathfinderSpec, seed: int, split: str, index: int, *, label: int | None = None
) -> PathfinderSample:
    """The sample of a (seed, split, index): always the same, whatever else is made beside it.

    Args:
        spec: What to draw.
        seed: Of the whole set, at least 0.
        split: "train", "val", "test" or "written".
        index: Number of the sample, at least 0.
        label: Force 0 or 1; None draws it. Paths and distractors stay the same.

    Raises:
        ValueError: An unknown split, or a number below 0.
    """
    check_key(seed, split)
    batch = make_batch(spec, seed, SPLITS[split], np.array([index], np.int64), label)
    return make_samples(spec, batch)[0]


def check_key(seed: int, split: str) -> None:
    """Raise unless ``seed`` and ``split`` name a set."""
    if split not in SPLITS:
        raise ValueError(f"expected split to be one of {', '.join(SPLITS)}, got {split=}")
    if seed < 0:
        raise ValueError(f"expected seed >= 0, got {seed=}")


def make_samples(spec: PathfinderSpec, batch: Batch) -> list[PathfinderSample]:
    """All masks of a batch."""
    return [_make_sample(spec, batch, i) for i in range(len(batch.labels))]


def semantic_masks(spec: PathfinderSpec, batch: Batch) -> NDArray[np.uint8]:
    """Semantic masks alone, (B, S, S) uint8, for training."""
    masks = np.zeros(batch.images.shape, np.uint8)
    for i, mask in enumerate(masks):
        tables = make_tables(spec, spec.paddle_margins[batch.margins[i]])
        _paint_long_paths(tables, batch, i, mask)
    return masks


def _roles(batch: Batch, i: int) -> tuple[int, int]:
    """Class of path 0 and of path 1."""
    if batch.labels[i] == 0:
        return UNCONNECTED, UNCONNECTED
    return (JOINING, UNCONNECTED) if batch.paths[i] == 0 else (UNCONNECTED, JOINING)


def _paint_long_paths(tables: Tables, batch: Batch, i: int, mask: NDArray[np.uint8]) -> None:
    roles = _roles(batch, i)
    paddles = batch.paddles[i, : batch.counts[i]]
    for path in sorted((0, 1), key=lambda path: roles[path]):
        for row in np.flatnonzero(paddles[:, SNAKE] == path):
            _paint(tables, paddles[row], mask, roles[path])


def _paint(tables: Tables, paddle: NDArray[np.int32], canvas: NDArray[np.generic], value: float) -> None:
    """Set the pixels of a paddle."""
    stamp = tables.ink[paddle[STAMP]] > INK
    radius, size = stamp.shape[0] // 2, canvas.shape[0]
    top, left = paddle[TIP_Y] - radius, paddle[TIP_X] - radius
    y0, x0 = max(0, -top), max(0, -left)
    y1, x1 = min(stamp.shape[0], size - top), min(stamp.shape[1], size - left)
    canvas[top + y0 : top + y1, left + x0 : left + x1][stamp[y0:y1, x0:x1]] = value


def _make_sample(spec: PathfinderSpec, batch: Batch, i: int) -> PathfinderSample:
    margin = spec.paddle_margins[batch.margins[i]]
    tables = make_tables(spec, margin)
    paddles = batch.paddles[i, : batch.counts[i]]
    shape = batch.images[i].shape
    semantic, instances = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    ordinal = np.full(shape, -1, np.float32)
    _paint_long_paths(tables, batch, i, semantic)
    for row in np.argsort(-np.minimum(paddles[:, SNAKE], 2), kind="stable"):  # distractors first
        _paint(tables, paddles[row], instances, 1 + paddles[row, SNAKE])
        if paddles[row, SNAKE] < 2:
            _paint(tables, paddles[row], ordinal, paddles[row, ORDER] / (spec.contour_length - 1))
    gap_free = _gap_free(spec, paddles, _roles(batch, i), shape)
    image, dots = batch.images[i].copy(), batch.dots[i].copy()
    return PathfinderSample(image, int(batch.labels[i]), semantic, instances, gap_free, ordinal, dots, margin)


def _gap_free(
    spec: PathfinderSpec, paddles: NDArray[np.int32], roles: tuple[int, int], shape: tuple[int, ...]
) -> NDArray[np.uint8]:
    """Each long path as one line as thick as its paddles, at least a pixel."""
    mask = np.zeros(shape, np.uint8)
    grid = np.moveaxis(np.indices(shape[:2]), 0, -1).astype(np.float64)  # S, S, 2
    for path in sorted((0, 1), key=lambda path: roles[path]):
        own = paddles[paddles[:, SNAKE] == path]
        tips = own[np.argsort(own[:, ORDER])][:, [TIP_Y, TIP_X]].astype(np.float64)
        for start, end in pairwise(tips):
            step = end - start
            along = np.clip(((grid - start) @ step) / max(1.0, float(step @ step)), 0, 1)
            distance = np.linalg.norm(grid - start - along[..., None] * step, axis=-1)
            mask[distance <= max(0.71, spec.paddle_thickness)] = roles[path]
    return mask
