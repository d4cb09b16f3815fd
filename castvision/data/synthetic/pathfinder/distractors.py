"""Short paths beside the two long ones, each placed where it finds room."""

from __future__ import annotations

import numpy as np

from castvision.data.synthetic.pathfinder.chains import SNAKE, STAMP, TIP_X, TIP_Y, Work, extend_chain, place_seed
from castvision.data.synthetic.pathfinder.compiled import kernel
from castvision.data.synthetic.pathfinder.randomness import below
from castvision.data.synthetic.pathfinder.stamps import NUM_DEGREES
from castvision.data.synthetic.pathfinder.tables import TAKEN, Tables

_ATTEMPTS = 5  # at a whole distractor
_SEEDS = 3  # starts whose head or anchor lies outside are drawn again
_GUESSES = 64  # places tried before all are listed


@kernel
def mark_taken(tables: Tables, work: Work, row: int) -> None:
    """Mark the pixels under a paddle's halo."""
    radius = tables.radius
    top, left = work.paddles[row, TIP_Y] - radius, work.paddles[row, TIP_X] - radius
    halo = tables.halo[work.paddles[row, STAMP]]
    for i in range(max(0, -top), min(2 * radius + 1, tables.size - top)):
        for j in range(max(0, -left), min(2 * radius + 1, tables.size - left)):
            if halo[i, j] > TAKEN:
                work.taken[top + i, left + j] = 1


@kernel
def is_free(tables: Tables, taken: np.ndarray, y: int, x: int, seed: int) -> bool:
    """Whether every pixel of a start's footprint that lies inside the image (there must be one) is free."""
    inside = False
    for i in range(tables.foot_count[seed]):
        row = y + tables.foot[seed, i, 0]
        column = x + tables.foot[seed, i, 1]
        if row >= 0 and column >= 0 and row < tables.size and column < tables.size:
            if taken[row, column]:
                return False
            inside = True
    return inside


@kernel
def draw_tail(tables: Tables, work: Work, seed: int) -> int:
    """A free place for a start, every one as likely, as ``y * size + x``; -1 if there is none."""
    size = tables.size
    for _ in range(_GUESSES):
        place = below(work.rng, size * size)
        if is_free(tables, work.taken, place // size, place % size, seed):
            return place
    count = 0
    for place in range(size * size):
        count += is_free(tables, work.taken, place // size, place % size, seed)
    if count == 0:
        return -1
    left = below(work.rng, count)
    for place in range(size * size):
        if is_free(tables, work.taken, place // size, place % size, seed):
            if left == 0:
                return place
            left -= 1
    return -1


@kernel
def seed_distractor(tables: Tables, work: Work, row: int) -> bool:
    """Place a distractor's first paddle."""
    for _ in range(_SEEDS):
        seed = below(work.rng, NUM_DEGREES)
        if not tables.seed_works[seed]:
            return False
        place = draw_tail(tables, work, seed)
        if place < 0:
            return False
        if place_seed(tables, work.paddles, row, (place // tables.size, place % tables.size), seed):
            return True
    return False


@kernel
def try_distractor(tables: Tables, work: Work, num_occupied: int, first: int) -> bool:
    """Draw one distractor into the rows from ``first`` on; it becomes an obstacle only if it is complete."""
    if not seed_distractor(tables, work, first):
        return False
    for i in range(1, tables.distractor_length):
        if not extend_chain(tables, work, num_occupied + i - 1, first + i - 1, first + i):
            return False
        work.occupied[num_occupied + i - 1] = first + i - 1
    work.occupied[num_occupied + tables.distractor_length - 1] = first + tables.distractor_length - 1
    return True


@kernel
def clear_taken(tables: Tables, work: Work) -> bool:
    """Start the map of taken pixels: the border and both paths. False if under a hundredth of the image is free."""
    size = tables.size
    work.taken[:] = 1
    work.taken[tables.padding : size - tables.padding, tables.padding : size - tables.padding] = 0
    for i in range(2 * tables.path_length - 1):
        mark_taken(tables, work, work.occupied[i])
    return bool(work.taken.sum() <= 0.99 * size * size)


@kernel
def add_distractors(tables: Tables, work: Work) -> int:
    """Place the distractors; returns the number of paddles in the image.

    NOTE: path one's last paddle is no obstacle to them, as in the public generator.
    """
    rows = 2 * tables.path_length
    work.occupied[rows - 2] = rows - 1
    num_occupied = rows - 1
    if not clear_taken(tables, work):
        return rows
    snake = 2
    for _ in range(tables.num_distractors):
        for _attempt in range(_ATTEMPTS):
            work.paddles[rows, SNAKE] = snake
            if try_distractor(tables, work, num_occupied, rows):
                for i in range(rows, rows + tables.distractor_length):
                    mark_taken(tables, work, i)
                rows += tables.distractor_length
                num_occupied += tables.distractor_length
                snake += 1
                break
    return rows
