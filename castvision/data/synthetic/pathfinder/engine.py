"""The compiled generator's front: many samples in one call, each from its own random stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castvision.data.synthetic.pathfinder.chains import NUM_COLUMNS, TIP_X, TIP_Y, Work, find_pair
from castvision.data.synthetic.pathfinder.compiled import entry_kernel, kernel, sources_digest
from castvision.data.synthetic.pathfinder.distractors import add_distractors
from castvision.data.synthetic.pathfinder.drawing import draw_image
from castvision.data.synthetic.pathfinder.randomness import below, start_stream
from castvision.data.synthetic.pathfinder.spec import PathfinderSpec
from castvision.data.synthetic.pathfinder.tables import Tables, make_tables

MAX_TRIES = 3_000_000
"""Pairs of paths drawn for one image before the generator gives up (LRA's hardest set needs about 1500 on average)."""


class Batch(NamedTuple):
    """B samples (S = image size, P = most paddles an image can have)."""

    images: NDArray[np.uint8]  # (B, S, S)
    labels: NDArray[np.int64]  # (B,): 1 = the dots mark one path
    paths: NDArray[np.int64]  # (B,): path (0 or 1) whose start has a dot
    margins: NDArray[np.int64]  # (B,): which of the spec's margins
    dots: NDArray[np.int32]  # (B, 2, 2): (y, x) of both
    paddles: NDArray[np.int32]  # (B, P, 7)
    counts: NDArray[np.int64]  # (B,): rows of paddles in use
    tries: NDArray[np.int64]  # (B,): pairs of paths drawn; -1 = gave up


def make_batch(
    spec: PathfinderSpec, seed: int, split: int, indices: NDArray[np.int64], label: int | None = None
) -> Batch:
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
    count, size = len(indices), spec.img_size
    rows = 2 * spec.contour_length + spec.num_distractors * spec.distractor_length + spec.distractor_length
    batch = Batch(
        np.zeros((count, size, size), np.uint8),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
        np.zeros((count, 2, 2), np.int32),
        np.zeros((count, rows, NUM_COLUMNS), np.int32),
        np.zeros(count, np.int64),
        np.zeros(count, np.int64),
    )
    key = np.array([seed, split], np.uint64)
    wanted = np.array([len(spec.paddle_margins), -1 if label is None else label, MAX_TRIES], np.int64)
    for which, margin in enumerate(spec.paddle_margins):
        tables = make_tables(spec, margin)
        _generate(tables, make_work(tables, rows), key, np.ascontiguousarray(indices), which, wanted, batch)
    if (batch.tries < 0).any():
        raise ValueError(
            f"found no room for two paths of {spec.contour_length} paddles at {spec.img_size} pixels in {MAX_TRIES} "
            f"tries; lower contour_length or seed_distance, or raise img_size"
        )
    return batch


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
def _make_sample(tables: Tables, work: Work, max_tries: int, batch: Batch, i: int) -> None:
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


def _build_generate(sources: int) -> Callable[..., None]:
    @entry_kernel
    def generate(
        tables: Tables,
        work: Work,
        key: NDArray[np.uint64],
        indices: NDArray[np.int64],
        which: int,
        wanted: NDArray[np.int64],
        batch: Batch,
    ) -> None:
        if sources < 0:  # never; see sources_digest
            return
        for i in range(len(indices)):
            start_stream(work.rng, key[0], key[1], np.uint64(indices[i]))
            margin = below(work.rng, wanted[0])
            if margin != which:  # another call has the tables for it
                continue
            batch.margins[i] = margin
            label = below(work.rng, 2)
            batch.labels[i] = label if wanted[1] < 0 else wanted[1]
            batch.paths[i] = below(work.rng, 2)
            _make_sample(tables, work, wanted[2], batch, i)

    return generate


_generate = _build_generate(sources_digest())
