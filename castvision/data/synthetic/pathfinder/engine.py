"""The generator: many samples in one call, each from its own random stream, searched and drawn by compiled code."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castvision.data.synthetic.compiled import SOURCES, SPLITS, below, entry_kernel, kernel, start_streams
from castvision.data.synthetic.pathfinder.search import (
    NUM_COLUMNS,
    SNAKE,
    STAMP,
    TIP_X,
    TIP_Y,
    Work,
    add_distractors,
    find_pair,
)
from castvision.data.synthetic.pathfinder.spec import PathfinderSpec
from castvision.data.synthetic.pathfinder.tables import Tables, make_tables

MAX_TRIES = 3_000_000
"""Pairs of paths drawn for one image before the generator gives up (LRA's hardest set needs about 1500 on average)."""
_PILOT_TRIES, _PILOT_IMAGES = 200_000, 4


class PathfinderBatch(NamedTuple):
    """B samples as they were generated (S = image size, P = most paddles an image can have)."""

    images: NDArray[np.uint8]  # (B, S, S)
    labels: NDArray[np.int64]  # (B,): 1 = the dots mark one path
    paths: NDArray[np.int64]  # (B,): path (0 or 1) whose start has a dot
    margins: NDArray[np.int64]  # (B,): index of the margin in the spec
    dots: NDArray[np.int32]  # (B, 2, 2): (y, x) of both
    paddles: NDArray[np.int32]  # (B, P, 7)
    counts: NDArray[np.int64]  # (B,): rows of paddles in use
    tries: NDArray[np.int64]  # (B,): pairs of paths drawn; -1 = gave up


def make_batch(
    spec: PathfinderSpec, seed: int, split: int, indices: NDArray[np.int64], label: int | None = None
) -> PathfinderBatch:
    """Generate samples.

    Args:
        spec: What to draw.
        seed: Of the whole set, 0 <= seed < 2 ** 63.
        split: Number of the split.
        indices: (B,) numbers of the samples.
        label: Label that every sample gets, or None to draw it. Everything else stays the same.

    Raises:
        ValueError: If the paths do not fit into the image within :data:`MAX_TRIES` tries.
    """
    batch = _draw_batch(spec, (seed, split), indices, label, MAX_TRIES)
    if (batch.tries < 0).any():
        raise ValueError(
            f"found no room for two paths of {spec.contour_length} paddles at {spec.img_size} pixels in {MAX_TRIES} "
            f"tries; lower contour_length or seed_distance, or raise img_size"
        )
    return batch


def check_room(spec: PathfinderSpec) -> None:
    """Refuse paths that find room so seldom that an image would take seconds, or for ever; a few images are tried.

    Raises:
        ValueError: It names a length that does find room.
    """

    def finds_room(length: int, tries: int) -> bool:
        some = np.arange(_PILOT_IMAGES)
        batch = _draw_batch(replace(spec, contour_length=length), (0, SPLITS["train"]), some, None, tries)
        return bool((batch.tries > 0).all())

    if finds_room(spec.contour_length, _PILOT_TRIES):
        return
    length = spec.contour_length
    while length > 2:
        length = max(2, min(length - 1, length * 4 // 5))
        if finds_room(length, _PILOT_TRIES // 10):
            remedy = f"lower contour_length to {length}, or raise img_size"
            break
    else:
        remedy = "lower seed_distance, or raise img_size"
    raise ValueError(
        f"expected room for two paths of contour_length={spec.contour_length} at {spec.img_size} pixels, found none in "
        f"{_PILOT_TRIES:,} tries; {remedy}"
    )


def _draw_batch(
    spec: PathfinderSpec, stream: tuple[int, int], indices: NDArray[np.int64], label: int | None, tries: int
) -> PathfinderBatch:
    """See `make_batch`; from the first sample without room on there are none."""
    count, size = len(indices), spec.img_size
    rows = 2 * spec.contour_length + spec.num_distractors * spec.distractor_length + spec.distractor_length
    batch = PathfinderBatch(
        np.zeros((count, size, size), np.uint8),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros((count, 2, 2), np.int32),
        np.zeros((count, rows, NUM_COLUMNS), np.int32),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
    )
    streams = start_streams(*stream, indices)
    for which, margin in enumerate(spec.paddle_margins):
        tables = make_tables(spec, margin)
        wanted = (which, len(spec.paddle_margins), -1 if label is None else label, tries)
        _generate(tables, make_work(tables, rows), streams, wanted, batch)
        if (batch.tries < 0).any():
            break
    return batch


def draw_with_dots(spec: PathfinderSpec, batch: PathfinderBatch, dots: list[NDArray[np.int32]]) -> NDArray[np.uint8]:
    """Draw the images of a batch again with other dots.

    Args:
        spec: Of the batch.
        batch: B samples of S x S pixels.
        dots: (y, x) of the dots of each sample, (D, 2) each.

    Returns:
        (B, S, S) uint8.
    """
    redrawn = batch._replace(images=np.zeros_like(batch.images))
    counts = np.array([len(positions) for positions in dots])
    padded = np.zeros((len(dots), int(counts.max(initial=1)), 2), np.int32)
    for row, positions in zip(padded, dots, strict=True):
        row[: len(positions)] = positions
    for which, margin in enumerate(spec.paddle_margins):
        tables = make_tables(spec, margin)
        _draw_images(tables, make_work(tables, batch.paddles.shape[1]), redrawn, which, (padded, counts))
    return redrawn.images


def make_work(tables: Tables, rows: int) -> Work:
    """Memory for images of at most ``rows`` paddles."""
    return Work(
        np.zeros(2, np.uint64),
        np.zeros((rows, NUM_COLUMNS), np.int32),
        np.zeros(rows, np.int32),
        np.zeros(rows, np.int32),
        np.zeros(len(tables.circle), np.float64),
        np.zeros((tables.size, tables.size), np.uint8),
        np.zeros((3, tables.size, tables.size), np.uint8),
        np.zeros((3, 256), np.uint8),
    )


@kernel
def stamp_highest(canvas: np.ndarray, stamp: np.ndarray, top: int, left: int) -> None:
    """Draw a stamp whose first pixel comes to (top, left); where something is, the brighter stays."""
    size = canvas.shape[0]
    for i in range(max(0, -top), min(stamp.shape[0], size - top)):
        for j in range(max(0, -left), min(stamp.shape[1], size - left)):
            canvas[top + i, left + j] = max(canvas[top + i, left + j], stamp[i, j])


@kernel
def position_in_stamp(position: int, edge: int, size: int) -> int:
    """Where a dot lies in its picture of ``2 edge + 1`` pixels: as far from the image's border, up to ``edge``."""
    return min(position, edge) + max(0, position - (size - 1 - edge))


@kernel
def draw_image(tables: Tables, work: Work, num_paddles: int, dots: np.ndarray, image: np.ndarray) -> None:
    """Draw paddles and dots, each kind with its contrast, and stretch the result to 0..255."""
    layers = work.layers
    layers.fill(0)
    for row in range(num_paddles):
        layer = 0 if work.paddles[row, SNAKE] < 2 else 1
        ink = tables.ink[work.paddles[row, STAMP]]
        top, left = work.paddles[row, TIP_Y] - tables.radius, work.paddles[row, TIP_X] - tables.radius
        stamp_highest(layers[layer], ink, top, left)
    edge = tables.dots.shape[0] // 2
    for i in range(len(dots)):
        y = position_in_stamp(dots[i, 0], edge, tables.size)
        x = position_in_stamp(dots[i, 1], edge, tables.size)
        stamp_highest(layers[2], tables.dots[y, x], dots[i, 0] - y, dots[i, 1] - x)
    highest = 0.0
    for i in range(3):
        for y in range(tables.size):
            for x in range(tables.size):
                highest = max(highest, tables.brightness[i, layers[i, y, x]])
    levels = work.levels
    scale = 255.0 / highest
    for i in range(3):
        for value in range(256):
            levels[i, value] = np.uint8(min(255.0, tables.brightness[i, value] * scale) + 0.5)
    for y in range(tables.size):
        for x in range(tables.size):
            path, distractor, dot = levels[0, layers[0, y, x]], levels[1, layers[1, y, x]], levels[2, layers[2, y, x]]
            image[y, x] = max(path, distractor, dot)


@kernel
def make_sample(tables: Tables, work: Work, max_tries: int, batch: PathfinderBatch, i: int) -> None:
    """Fill entry ``i`` of a batch whose label and path are set."""
    batch.tries[i] = find_pair(tables, work, max_tries)
    if batch.tries[i] < 0:
        return
    count = add_distractors(tables, work)
    start = batch.paths[i]
    end = start if batch.labels[i] == 1 else 1 - start
    last = 2 * (tables.path_length - 1)
    for dot, row in enumerate((start, last + end)):
        batch.dots[i, dot, 0] = work.paddles[row, TIP_Y]
        batch.dots[i, dot, 1] = work.paddles[row, TIP_X]
    batch.counts[i] = count
    for row in range(count):
        for column in range(NUM_COLUMNS):
            batch.paddles[i, row, column] = work.paddles[row, column]
    draw_image(tables, work, count, batch.dots[i], batch.images[i])


@entry_kernel
def _generate(
    tables: Tables,
    work: Work,
    streams: NDArray[np.uint64],
    wanted: tuple[int, int, int, int],
    batch: PathfinderBatch,
    sources: int = SOURCES,
) -> None:
    """Make the samples of one margin; ``wanted``: its index, how many margins there are, the label, most tries."""
    which, num_margins, wanted_label, max_tries = wanted
    for i in range(len(streams)):
        work.rng[:] = streams[i]
        margin = below(work.rng, num_margins)
        if margin != which:  # another call has the tables for it
            continue
        batch.margins[i] = margin
        label = below(work.rng, 2)
        batch.labels[i] = label if wanted_label < 0 else wanted_label
        batch.paths[i] = below(work.rng, 2)
        make_sample(tables, work, max_tries, batch, i)
        if batch.tries[i] < 0:
            return


@entry_kernel
def _draw_images(
    tables: Tables,
    work: Work,
    batch: PathfinderBatch,
    which: int,
    dots: tuple[NDArray[np.int32], NDArray[np.int64]],
    sources: int = SOURCES,
) -> None:
    """Draw the images of one margin with the dots (positions, number of them by sample)."""
    positions, counts = dots
    for i in range(len(batch.images)):
        if batch.margins[i] == which:
            work.paddles[:] = batch.paddles[i]
            draw_image(tables, work, batch.counts[i], positions[i, : counts[i]], batch.images[i])
