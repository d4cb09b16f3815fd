"""Maze: two dots, and the only way between them.

The maze is a spanning tree of a grid of cells, drawn by the growing-tree method: go on from the newest cell (a
randomised depth-first search, long winding ways) or, now and then, from an older one (shorter ways, more dead ends). It
is no uniform spanning tree. Since a tree has no cycles, exactly one way joins two cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castvision.data.dense.dataset import ENDLESS, FOLDER, DenseBatch, DenseDataset, check_range
from castvision.data.pathfinder.compiled import entry_kernel, kernel, sources_digest
from castvision.data.pathfinder.randomness import below, high_below, low_unit, next_bits, start_stream

CORRIDOR, DOT = 128, 255
"""Grey levels; walls are black."""

_GOALS = 4  # cells drawn for the second dot, of which the farthest is taken


class Grid(NamedTuple):
    """Memory that the search reuses: n x n cells in a frame of cells that belong to nobody."""

    rng: NDArray[np.uint64]  # (2,)
    parent: NDArray[np.int32]  # ((n + 2) ** 2,): cell one step nearer to the first dot; 0 = not reached, -1 = frame
    depth: NDArray[np.int32]  # ((n + 2) ** 2,): steps from the first dot
    active: NDArray[np.int32]  # (n ** 2,): cells that may have neighbours left
    choices: NDArray[np.int32]  # (4,)


class MazeDataset(DenseDataset):
    """A maze with a dot in two of its cells; the target is the way between them: 0 other, 1 the way.

    A cell takes ``cell`` x ``cell`` pixels, a quarter of it wall, but never less than two pixels. The first dot lies anywhere, the
    second in the farthest of four random cells. See :class:`DenseDataset` for items and the other arguments.

    Args:
        img_size: Height and width, a multiple of ``cell``, at least three cells.
        cell: Pixels from one cell to the next, at least 4.
        winding: Share of steps that go on from the newest cell: 1 gives ways as long as they get, 0 short ones.
        split: "train", "val" or "test".
        length: Number of images.
        seed: Another seed is another set.

    Raises:
        ValueError: An unknown split, or a number out of range.
        TypeError: A number that should be whole and isn't.
    """

    class_names = ("other", "way")

    def __init__(  # noqa: PLR0913 - the options of a data set
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
        )
        _generate(grid, self.key, indices, (side, self.cell), self.winding, batch)
        return batch


@kernel
def clear(grid: Grid, side: int) -> None:
    """No cell is reached, the frame is closed."""
    stride = side + 2
    grid.parent[:] = 0
    for i in range(stride):
        grid.parent[i] = -1
        grid.parent[(side + 1) * stride + i] = -1
        grid.parent[i * stride] = -1
        grid.parent[i * stride + side + 1] = -1


@kernel
def cell_at(side: int, number: int) -> int:
    """Place in the framed grid of cell ``number`` of ``side ** 2``."""
    return (number // side + 1) * (side + 2) + number % side + 1


@kernel
def grow(grid: Grid, side: int, start: int, winding: float) -> None:
    """Give every cell a parent: the tree, rooted at the first dot."""
    rng, parent, active, choices = grid.rng, grid.parent, grid.active, grid.choices
    stride = side + 2
    parent[start] = start
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
        parent[chosen] = here
        grid.depth[chosen] = grid.depth[here] + 1
        active[count] = chosen
        count += 1


@kernel
def draw_link(canvas: np.ndarray, cells: tuple[int, int], geometry: tuple[int, int], value: int) -> None:
    """Paint a cell and the opening to a neighbour (or to itself: the cell alone)."""
    side, cell = geometry
    stride = side + 2
    inset = max(1, cell // 8)
    here, there = cells
    y, x = (here // stride - 1) * cell, (here % stride - 1) * cell
    other_y, other_x = (there // stride - 1) * cell, (there % stride - 1) * cell
    for i in range(min(y, other_y) + inset, max(y, other_y) + cell - inset):
        for j in range(min(x, other_x) + inset, max(x, other_x) + cell - inset):
            canvas[i, j] = value


@kernel
def make_sample(grid: Grid, geometry: tuple[int, int], winding: float, batch: DenseBatch, i: int) -> None:
    """Fill entry ``i`` of a batch; the random stream has been started."""
    side, cell = geometry
    clear(grid, side)
    start = cell_at(side, below(grid.rng, side * side))
    grow(grid, side, start, winding)
    goal = start
    for _ in range(_GOALS):
        other = cell_at(side, below(grid.rng, side * side))
        if grid.depth[other] > grid.depth[goal]:
            goal = other
    for number in range(side * side):
        here = cell_at(side, number)
        draw_link(batch.images[i], (here, grid.parent[here]), geometry, CORRIDOR)
    here = goal
    while here != start:
        draw_link(batch.targets[i], (here, grid.parent[here]), geometry, 1)
        here = grid.parent[here]
    draw_link(batch.targets[i], (start, start), geometry, 1)
    draw_link(batch.images[i], (start, start), geometry, DOT)
    draw_link(batch.images[i], (goal, goal), geometry, DOT)
    batch.dots[i, 0] = (start // (side + 2) - 1) * cell + cell // 2
    batch.dots[i, 1] = (start % (side + 2) - 1) * cell + cell // 2


def _build_generate(sources: int) -> Callable[..., None]:
    @entry_kernel
    def generate(
        grid: Grid,
        key: NDArray[np.uint64],
        indices: NDArray[np.int64],
        geometry: tuple[int, int],
        winding: float,
        batch: DenseBatch,
    ) -> None:
        if sources < 0:  # never; see sources_digest
            return
        for i in range(len(indices)):
            start_stream(grid.rng, key[0], key[1], np.uint64(indices[i]))
            make_sample(grid, geometry, winding, batch, i)

    return generate


_generate = _build_generate(sources_digest(FOLDER))
