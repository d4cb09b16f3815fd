"""The search for paths: chains of paddles that turn a little and keep clear of everything placed before.

First the two long paths are drawn, a paddle of each in turn; then each distractor where it finds room.

A chain stands at an *anchor* with a *heading*. The next anchor lies one paddle and two margins ahead; the next tip is
one of the pixels on a circle around it, drawn with probability proportional to cos² of the (scaled) turn times the room
there; the paddle reaches from the tip back towards the anchor. It is refused where it would overlap. The newest paddle
of a chain counts as an obstacle only after the next one is placed, else consecutive paddles would repel each other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castvision.data.synthetic.compiled import below, high_below, kernel, low_unit, next_bits, unit
from castvision.data.synthetic.pathfinder.tables import NUM_DEGREES, TAKEN, Tables

SNAKE, ORDER, TIP_Y, TIP_X, ANCHOR_Y, ANCHOR_X, STAMP = range(7)
"""Columns of a table of paddles. Rows: path one and two in turn, then the distractors."""
NUM_COLUMNS = 7

_DRAWS = 3  # times that a paddle is drawn before a chain gives up
_PROPOSALS = 10  # quick draws of a turn before all weights are added up
_NO_ROOM = 1e-4  # sum of weights below which a chain is stuck
_FULL = 255

_ATTEMPTS = 5  # at a whole distractor
_SEEDS = 3  # starts of a distractor whose head or anchor lies outside are drawn again
_GUESSES = 64  # random positions tried before all are listed


class Work(NamedTuple):
    """Memory that the search reuses."""

    rng: NDArray[np.uint64]  # (2,)
    paddles: NDArray[np.int32]  # (P, 7)
    occupied: NDArray[np.int32]  # (P,): rows of paddles that are obstacles
    near: NDArray[np.int32]  # (P,): those of them close to the current anchor
    weights: NDArray[np.float64]  # (K,)
    taken: NDArray[np.uint8]  # (size, size): 1 where a distractor's start must not be
    layers: NDArray[np.uint8]  # (3, size, size): ink of paths, ink of distractors, dots
    levels: NDArray[np.uint8]  # (3, 256): their grey levels in the image


@kernel
def collect_near(tables: Tables, work: Work, count: int, y: int, x: int) -> int:
    """List the obstacles near an anchor; returns how many there are."""
    found = 0
    for i in range(count):
        row = work.occupied[i]
        if abs(work.paddles[row, TIP_Y] - y) <= tables.near and abs(work.paddles[row, TIP_X] - x) <= tables.near:
            work.near[found] = row
            found += 1
    return found


@kernel
def room_at(tables: Tables, work: Work, num_near: int, y: int, x: int) -> int:
    """How free the surroundings of a tip are: 0 (full, or too near the border) to 255."""
    low = tables.padding + tables.margin
    high = tables.size - 1 - low
    if y < low or x < low or y > high or x > high:
        return 0
    reach = tables.radius + tables.margin
    highest = 0
    for i in range(num_near):
        row = work.near[i]
        dy = y - work.paddles[row, TIP_Y] + reach
        dx = x - work.paddles[row, TIP_X] + reach
        if dy >= 0 and dx >= 0 and dy <= 2 * reach and dx <= 2 * reach:
            highest = max(highest, np.int64(tables.wide_halo[work.paddles[row, STAMP], dy, dx]))  # type: ignore[assignment] # numba types it
    return _FULL - highest


@kernel
def weigh_turns(tables: Tables, work: Work, num_near: int, anchor: tuple[int, int], heading: int) -> float:
    """Fill ``work.weights`` with the weight of every allowed turn; returns their sum."""
    total = 0.0
    for i in range(tables.turn_count[heading]):
        k = tables.turns[heading, i]
        room = room_at(tables, work, num_near, anchor[0] + tables.circle[k, 0], anchor[1] + tables.circle[k, 1])
        work.weights[i] = tables.turn_weight[heading, i] * (room / _FULL)
        total += work.weights[i]
    return total


@kernel
def draw_turn(tables: Tables, work: Work, num_near: int, anchor: tuple[int, int], heading: int) -> int:
    """Draw a point of the circle in proportion to its weight; -1 if the chain is stuck.

    A few rounds of rejection sampling answer most calls without looking at every point, with exactly the distribution
    that adding up all weights gives; only then are they added up.
    """
    for _ in range(_PROPOSALS):
        bits = next_bits(work.rng)
        i = high_below(bits, tables.turn_count[heading])
        weight = tables.turn_weight[heading, i]
        if low_unit(bits) >= weight:
            continue
        k = tables.turns[heading, i]
        room = room_at(tables, work, num_near, anchor[0] + tables.circle[k, 0], anchor[1] + tables.circle[k, 1])
        if room == 0 or (room < _FULL and below(work.rng, _FULL) >= room):
            continue
        if weight * (room / _FULL) < _NO_ROOM and weigh_turns(tables, work, num_near, anchor, heading) < _NO_ROOM:
            return -1
        return int(k)
    total = weigh_turns(tables, work, num_near, anchor, heading)
    if total < _NO_ROOM:
        return -1
    target = unit(work.rng) * total
    last = -1
    for i in range(tables.turn_count[heading]):
        if work.weights[i] > 0.0:
            last = tables.turns[heading, i]
            target -= work.weights[i]
            if target < 0.0:
                break
    return last


@kernel
def overlaps(tables: Tables, paddles: np.ndarray, row: int, tip: tuple[int, int], stamp: int) -> bool:
    """Whether a new paddle's halo and a placed one's add up to a clash anywhere."""
    dy = tip[0] - paddles[row, TIP_Y]
    dx = tip[1] - paddles[row, TIP_X]
    other = paddles[row, STAMP]
    box, old = tables.core_box[stamp], tables.core_box[other]
    if dy + box[0] > old[1] or dy + box[1] < old[0] or dx + box[2] > old[3] or dx + box[3] < old[2]:
        return False
    radius = tables.radius
    for i in range(tables.core_count[stamp]):
        y = dy + tables.core[stamp, i, 0] + radius
        x = dx + tables.core[stamp, i, 1] + radius
        if y >= 0 and x >= 0 and y <= 2 * radius and x <= 2 * radius:
            if tables.halo[other, y, x] >= tables.core[stamp, i, 2]:
                return True
    return False


@kernel
def fits(tables: Tables, work: Work, num_near: int, tip: tuple[int, int], stamp: int) -> bool:
    """Whether a paddle clashes neither with the border nor with an obstacle."""
    low, high = tables.padding, tables.size - tables.padding
    box = tables.core_box[stamp]
    if tip[0] + box[0] < low or tip[0] + box[1] >= high or tip[1] + box[2] < low or tip[1] + box[3] >= high:
        return False
    for i in range(num_near):
        if overlaps(tables, work.paddles, work.near[i], tip, stamp):
            return False
    return True


@kernel
def step(start: tuple[int, int], moves: np.ndarray, i: int) -> tuple[int, int]:
    """Move from a pixel and round up, in the arithmetic of the public generator (see :mod:`.tables`)."""
    return int(np.ceil(start[0] + moves[i, 0])), int(np.ceil(start[1] + moves[i, 1]))


@kernel
def extend_chain(tables: Tables, work: Work, num_occupied: int, last: int, row: int) -> bool:
    """Add the paddle ``row`` to the chain whose newest paddle is ``last``; False if it is stuck."""
    paddles = work.paddles
    heading = paddles[last, STAMP]
    y, x = step((paddles[last, ANCHOR_Y], paddles[last, ANCHOR_X]), tables.advance, heading)
    num_near = collect_near(tables, work, num_occupied, y, x)
    for _ in range(_DRAWS):
        k = draw_turn(tables, work, num_near, (y, x), heading)
        if k < 0:
            return False
        tip = (y + tables.circle[k, 0], x + tables.circle[k, 1])
        if fits(tables, work, num_near, tip, NUM_DEGREES + k):
            paddles[row, SNAKE] = paddles[last, SNAKE]
            paddles[row, ORDER] = paddles[last, ORDER] + 1
            paddles[row, TIP_Y], paddles[row, TIP_X] = tip
            paddles[row, ANCHOR_Y], paddles[row, ANCHOR_X] = y, x
            paddles[row, STAMP] = NUM_DEGREES + k
            return True
    return False


@kernel
def place_seed(tables: Tables, paddles: np.ndarray, row: int, tail: tuple[int, int], seed: int) -> bool:
    """Write a chain's first paddle; False if its head or anchor would lie outside the image."""
    size = tables.size
    head_y, head_x = step(tail, tables.seed_head, seed)
    anchor_y, anchor_x = step((head_y, head_x), tables.seed_back, seed)
    if min(head_y, head_x, anchor_y, anchor_x) < 0 or max(head_y, head_x, anchor_y, anchor_x) >= size:
        return False
    paddles[row, ORDER] = 0
    paddles[row, TIP_Y], paddles[row, TIP_X] = tail
    paddles[row, ANCHOR_Y], paddles[row, ANCHOR_X] = anchor_y, anchor_x
    paddles[row, STAMP] = seed
    return True


@kernel
def seed_pair(tables: Tables, work: Work) -> bool:
    """Place the first paddles of both paths."""
    rng, paddles = work.rng, work.paddles
    seed = tables.first_seeds[below(rng, len(tables.first_seeds))]
    box = tables.first_box[seed]
    tail_y = box[0] + below(rng, box[1] - box[0] + 1)
    tail_x = box[2] + below(rng, box[3] - box[2] + 1)
    paddles[0, SNAKE], paddles[1, SNAKE] = 0, 1
    if not place_seed(tables, paddles, 0, (tail_y, tail_x), seed):
        return False
    for _ in range(_DRAWS):
        seed = below(rng, NUM_DEGREES)
        away = below(rng, NUM_DEGREES)
        offset = tables.seed_offsets[away]
        tail = (int(np.rint(tail_y + offset[0])), int(np.rint(tail_x + offset[1])))
        if place_seed(tables, paddles, 1, tail, seed):
            return True
    return False


@kernel
def try_pair(tables: Tables, work: Work) -> bool:
    """Draw both paths once, a paddle of each in turn; False as soon as one is stuck."""
    if not seed_pair(tables, work):
        return False
    for row in range(2, 2 * tables.path_length):
        # Obstacles are all older paddles but the newest of each path, which are rows - 2 and - 1.
        if not extend_chain(tables, work, row - 2, row - 2, row):
            return False
    return True


@kernel
def find_pair(tables: Tables, work: Work, max_tries: int) -> int:
    """Draw pairs of paths until one is complete; returns the number of tries, or -1 after ``max_tries``."""
    for row in range(2 * tables.path_length):
        work.occupied[row] = row
    for tries in range(1, max_tries + 1):
        if try_pair(tables, work):
            return tries
    return -1


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
    """A free pixel for a start, all equally likely, as ``y * size + x``; -1 if there is none."""
    size = tables.size
    for _ in range(_GUESSES):
        position = below(work.rng, size * size)
        if is_free(tables, work.taken, position // size, position % size, seed):
            return position
    count = 0
    for position in range(size * size):
        count += is_free(tables, work.taken, position // size, position % size, seed)
    if count == 0:
        return -1
    left = below(work.rng, count)
    for position in range(size * size):
        if is_free(tables, work.taken, position // size, position % size, seed):
            if left == 0:
                return position
            left -= 1
    return -1


@kernel
def seed_distractor(tables: Tables, work: Work, row: int) -> bool:
    """Place a distractor's first paddle."""
    for _ in range(_SEEDS):
        seed = below(work.rng, NUM_DEGREES)
        if not tables.seed_works[seed]:
            return False
        position = draw_tail(tables, work, seed)
        if position < 0:
            return False
        if place_seed(tables, work.paddles, row, (position // tables.size, position % tables.size), seed):
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
