"""Maze: two dots, and the only way between them.

The maze is a spanning tree of a grid of cells, drawn by the growing-tree method: go on from the newest cell (a
randomised depth-first search, long winding ways) or, now and then, from an older one (shorter ways, more dead ends). It
is no uniform spanning tree. Since a tree has no cycles, exactly one way joins two cells.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castvision.data.datasets.batch import ENDLESS
from castvision.data.synthetic.compiled import SOURCES, below, entry_kernel, high_below, kernel, low_unit, next_bits
from castvision.data.synthetic.dataset import DenseBatch, DenseDataset, check_range

CORRIDOR, DOT = 128, 255
"""Grey levels; walls are black."""

_REACHED, _WAY = 1, 2
_GOALS = 4  # cells drawn for the second dot, of which the farthest is taken


class Grid(NamedTuple):
    """Memory that the search reuses: n x n cells in a frame of cells that belong to nobody."""

    rng: NDArray[np.uint64]  # (2,)
    parent: NDArray[np.int32]  # ((n + 2) ** 2,): cell one step nearer to the first dot; 0 = not reached, -1 = frame
    depth: NDArray[np.int32]  # ((n + 2) ** 2,): steps from the first dot
    active: NDArray[np.int32]  # (n ** 2,): cells that may have neighbours left
    choices: NDArray[np.int32]  # (4,)
    marks: NDArray[np.uint8]  # ((n + 2) ** 2,): frame, cell, cell of the way


class MazeDataset(DenseDataset):
    """A maze with a dot in two of its cells; the target is the way between them: 0 other, 1 the way.

    A cell takes ``cell`` x ``cell`` pixels, a quarter of it wall, but never less than two pixels. The first dot lies
    anywhere, the second in the farthest of four random cells. See :class:`DenseDataset` for items and the other
    arguments.

    Args:
        img_size: Height and width, a multiple of ``cell``, at least three cells.
        cell: Pixels from one cell to the next, at least 4.
        winding: Share of steps that go on from the newest cell: 1 gives ways as long as they get, 0 short ones.

    Raises:
        ValueError: An unknown split, or a number out of range.
        TypeError: A number that should be whole and isn't.
    """

    class_names = ("other", "way")

    def __init__(
        self,
        img_size: int = 512,
        cell: int = 4,
        winding: float = 1.0,
        split: str = "train",
        length: int = ENDLESS,
        seed: int = 0,
    ) -> None:
        super().__init__(img_size, split, length, seed)
        check_range("cell", cell, 4, img_size // 3)
        check_range("winding", winding, 0, 1, whole=False)
        if img_size % cell:
            raise ValueError(f"expected img_size to be a multiple of cell, got {img_size=}, {cell=}")
        self.cell, self.winding = cell, winding

    def make_batch(self, indices: NDArray[np.int64]) -> DenseBatch:
        """Generate the samples with these numbers, (B,)."""
        shape = (len(indices), self.img_size, self.img_size)
        batch = DenseBatch(np.zeros(shape, np.uint8), np.zeros(shape, np.uint8), np.zeros((len(indices), 2), np.int64))
        side = self.img_size // self.cell
        grid = Grid(
            np.zeros(2, np.uint64),
            np.zeros((side + 2) ** 2, np.int32),
            np.zeros((side + 2) ** 2, np.int32),
            np.zeros(side**2, np.int32),
            np.zeros(4, np.int32),
            np.zeros((side + 2) ** 2, np.uint8),
        )
        _generate(grid, self.start_streams(indices), (side, self.cell), self.winding, batch)
        return batch


@kernel
def clear(grid: Grid, side: int) -> None:
    """No cell is reached, the frame is closed."""
    stride = side + 2
    grid.parent[:] = 0
    grid.marks[:] = 0
    for i in range(stride):
        grid.parent[i] = -1
        grid.parent[(side + 1) * stride + i] = -1
        grid.parent[i * stride] = -1
        grid.parent[i * stride + side + 1] = -1


@kernel
def cell_at(side: int, number: int) -> int:
    """Index in the framed grid of cell ``number`` of ``side ** 2``."""
    return (number // side + 1) * (side + 2) + number % side + 1


@kernel
def grow(grid: Grid, side: int, start: int, winding: float) -> None:
    """Give every cell a parent: the tree, rooted at the first dot."""
    rng, parent, active, choices = grid.rng, grid.parent, grid.active, grid.choices
    stride = side + 2
    parent[start], grid.marks[start] = start, _REACHED
    grid.depth[start] = 0
    active[0] = start
    count = 1
    while count > 0:
        bits = next_bits(rng)
        if low_unit(bits) >= winding:
            other = below(rng, count)
            active[other], active[count - 1] = active[count - 1], active[other]
        here = active[count - 1]
        free = 0
        for there in (here - stride, here - 1, here + 1, here + stride):
            if parent[there] == 0:
                choices[free] = there
                free += 1
        if free == 0:
            count -= 1
            continue
        chosen = choices[high_below(bits, free)]
        parent[chosen], grid.marks[chosen] = here, _REACHED
        grid.depth[chosen] = grid.depth[here] + 1
        active[count] = chosen
        count += 1


@kernel
def repeat(canvas: np.ndarray, first: int, last: int) -> None:
    """Copy a line of pixels to those below it."""
    source = canvas[first]
    for y in range(first + 1, last):
        line = canvas[y]
        for x in range(len(line)):
            line[x] = source[x]


@kernel
def draw_row(grid: Grid, row: int, geometry: tuple[int, int], value: int, canvas: np.ndarray) -> None:
    """Draw a row of cells with the openings to the right and below: two lines of pixels, each copied downwards.

    A cell is drawn where its mark is at least ``value``, an opening where both of its cells are.
    """
    side, cell = geometry
    parent, marks = grid.parent, grid.marks
    inset = max(1, cell // 8)
    top = row * cell + inset
    bottom = (row + 1) * cell - inset
    shade = CORRIDOR if value == _REACHED else 1
    is_blank = True
    for column in range(side):
        here = (row + 1) * (side + 2) + column + 1
        if marks[here] < value:
            continue
        is_blank = False
        left = column * cell
        right, below_it = here + 1, here + side + 2
        is_open = marks[right] >= value and (parent[right] == here or parent[here] == right)
        canvas[top, left + inset : left + cell + (inset if is_open else -inset)] = shade
        if marks[below_it] >= value and (parent[below_it] == here or parent[here] == below_it):
            canvas[bottom, left + inset : left + cell - inset] = shade
    if is_blank:
        return
    repeat(canvas, top, bottom)
    repeat(canvas, bottom, min(bottom + 2 * inset, side * cell))


@kernel
def draw_dot(image: np.ndarray, here: int, geometry: tuple[int, int]) -> tuple[int, int]:
    """Fill a cell; returns the pixel in its middle."""
    side, cell = geometry
    inset = max(1, cell // 8)
    y, x = (here // (side + 2) - 1) * cell, (here % (side + 2) - 1) * cell
    image[y + inset : y + cell - inset, x + inset : x + cell - inset] = DOT
    return y + cell // 2, x + cell // 2


@kernel
def make_sample(grid: Grid, geometry: tuple[int, int], winding: float, batch: DenseBatch, i: int) -> None:
    """Fill entry ``i`` of a batch; the random stream has been started."""
    side = geometry[0]
    clear(grid, side)
    start = cell_at(side, below(grid.rng, side * side))
    grow(grid, side, start, winding)
    goal = start
    for _ in range(_GOALS):
        other = cell_at(side, below(grid.rng, side * side))
        if grid.depth[other] > grid.depth[goal]:
            goal = other
    here = goal
    while here != start:
        grid.marks[here] = _WAY
        here = grid.parent[here]
    grid.marks[start] = _WAY
    for row in range(side):
        draw_row(grid, row, geometry, _REACHED, batch.images[i])
        draw_row(grid, row, geometry, _WAY, batch.targets[i])
    draw_dot(batch.images[i], goal, geometry)
    batch.dots[i, 0], batch.dots[i, 1] = draw_dot(batch.images[i], start, geometry)


@entry_kernel
def _generate(
    grid: Grid,
    streams: NDArray[np.uint64],
    geometry: tuple[int, int],
    winding: float,
    batch: DenseBatch,
    sources: int = SOURCES,
) -> None:
    for i in range(len(streams)):
        grid.rng[:] = streams[i]
        make_sample(grid, geometry, winding, batch, i)
