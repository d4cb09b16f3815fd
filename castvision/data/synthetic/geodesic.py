"""The length of the shortest way to every pixel, by breadth-first search."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from castvision.data.synthetic.pathfinder.compiled import entry_kernel


def geodesic_distance(passable: NDArray[np.bool_], start: tuple[int, int]) -> NDArray[np.float32]:
    """Steps from a pixel to every other one through passable pixels, four neighbours to each.

    Args:
        passable: (height, width).
        start: (y, x).

    Returns:
        (height, width) float32; infinite where no way leads, and everywhere if the start is not passable.

    Raises:
        ValueError: ``passable`` is no picture, or the start lies outside.
    """
    if passable.ndim != 2:
        raise ValueError(f"expected passable of shape (height, width), got {passable.shape=}")
    height, width = passable.shape
    y, x = start
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"expected a start within {height} x {width} pixels, got {start=}")
    steps = np.full((height + 2, width + 2), -1, np.int32)  # -1: a wall, as the frame is
    steps[1:-1, 1:-1][passable] = 0  # 0: not reached yet
    if passable[y, x]:
        _search(steps.reshape(-1), (y + 1) * (width + 2) + x + 1, width + 2, np.empty(passable.size, np.int32))
    inside = steps[1:-1, 1:-1]
    return np.where(inside > 0, inside - 1, np.inf).astype(np.float32)


@entry_kernel
def _search(steps: NDArray[np.int32], start: int, stride: int, queue: NDArray[np.int32]) -> None:
    """Number every reachable place by its distance + 1."""
    steps[start] = 1
    queue[0] = start
    first, last = 0, 1
    while first < last:
        here = queue[first]
        first += 1
        for move in (-stride, -1, 1, stride):
            if steps[here + move] == 0:
                steps[here + move] = steps[here] + 1
                queue[last] = here + move
                last += 1
