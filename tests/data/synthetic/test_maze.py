"""The marked way is the only one, found again by brute force from the pixels alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from castvision.data.synthetic import MazeDataset
from castvision.data.synthetic.maze import CORRIDOR, DOT


def read_cells(image: np.ndarray, cell: int) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Neighbours of every cell, as the picture shows them."""
    side = len(image) // cell
    middle = cell // 2
    links = {(y, x): [] for y in range(side) for x in range(side)}
    for (y, x), found in links.items():
        for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            if (y + dy, x + dx) in links:
                between = [
                    image[y * cell + middle + dy * step, x * cell + middle + dx * step] > 0 for step in range(cell)
                ]
                if all(between):
                    found.append((y + dy, x + dx))
    return links


def all_ways(links: dict, start: tuple[int, int], goal: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """Every way without a repeated cell, by trying them all."""
    ways, unfinished = [], [[start]]
    while unfinished:
        way = unfinished.pop()
        if way[-1] == goal:
            ways.append(way)
            continue
        unfinished += [[*way, there] for there in links[way[-1]] if there not in way]
    return ways


@pytest.mark.parametrize(("size", "cell", "winding"), [(64, 8, 0.5), (64, 4, 1.0), (60, 5, 0.0), (96, 16, 0.9)])
def test_the_target_is_the_only_way(size: int, cell: int, winding: float) -> None:
    batch = MazeDataset(size, cell, winding, seed=2).make_batch(np.arange(6))
    for image, target, dot in zip(batch.images, batch.targets, batch.dots, strict=True):
        links = read_cells(image, cell)
        assert sum(map(len, links.values())) == 2 * (len(links) - 1)  # as many links as a tree has
        marked = {(y // cell, x // cell) for y, x in np.argwhere(image == DOT).tolist()}
        assert len(marked) == 2 and (dot[0] // cell, dot[1] // cell) in marked
        start, goal = marked
        (way,) = all_ways(links, start, goal)
        assert {(y // cell, x // cell) for y, x in np.argwhere(target).tolist()} == set(way)
        # walls are never marked, and of the corridors exactly the way's cells and the openings between them
        assert (image[target == 1] > 0).all()
        assert target.sum() == sum(
            (image[y * cell : (y + 1) * cell, x * cell : (x + 1) * cell] > 0).sum() for y, x in way
        ) - count_side_openings(image, links, way, cell)


def count_side_openings(image: np.ndarray, links: dict, way: list, cell: int) -> int:
    """Pixels of openings that lead from a cell of the way to one aside, on the way's side of the border."""
    inset = max(1, cell // 8)
    next_to = {frozenset(pair) for pair in pairwise(way)}
    aside = sum(frozenset((here, there)) not in next_to for here in way for there in links[here])
    return aside * inset * (cell - 2 * inset)


def test_every_cell_is_reached_and_distances_count_steps_along_the_way() -> None:
    data = MazeDataset(64, 8, 0.7, "val", seed=4)
    batch = data.make_batch(np.array([5]))
    distance = data.distance(5)
    assert np.isfinite(distance).sum() == (batch.images[0] > 0).sum()
    assert distance[tuple(batch.dots[0])] == 0
    cells = int(batch.targets[0, 4::8, 4::8].sum())
    goal = [place for place in np.argwhere(batch.images[0, 4::8, 4::8] == DOT).tolist()]
    ends = [distance[4 + 8 * y, 4 + 8 * x] for y, x in goal]
    # from middle to middle it is eight steps a cell, less what a broad corridor saves at its corners
    near, far = sorted(ends)
    assert near == 0 and 8 * (cells - 1) * 0.7 < far <= 8 * (cells - 1)


def test_winding_lengthens_the_ways() -> None:
    lengths = [
        MazeDataset(128, 4, winding).make_batch(np.arange(100)).targets[:, 2::4, 2::4].sum((1, 2)).mean()
        for winding in (0.0, 0.7, 1.0)
    ]
    assert lengths[0] < 0.7 * lengths[1] < 0.5 * lengths[2]


def test_balance_at_the_size_that_configurations_train() -> None:
    batch = MazeDataset(64, 8, 0.5).make_batch(np.arange(500))
    assert 0.1 < batch.targets.mean() < 0.25
    assert set(np.unique(batch.images)) == {0, CORRIDOR, DOT}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": 3}, "cell"),
        ({"img_size": 64, "cell": 32}, "cell"),
        ({"img_size": 66, "cell": 8}, "multiple of cell"),
        ({"winding": 1.5}, "winding"),
        ({"split": "dev"}, "split"),
        ({"length": 0}, "length"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input_is_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MazeDataset(**arguments)


def test_what_is_not_a_number_is_named() -> None:
    with pytest.raises(TypeError, match=r"cell=4\.0"):
        MazeDataset(64, 4.0)
    with pytest.raises(TypeError, match="winding=True"):
        MazeDataset(64, winding=True)


@pytest.mark.parametrize("size", [256, pytest.param(1024, marks=pytest.mark.slow)])
def test_large_mazes(size: int) -> None:
    image, target = MazeDataset(size)[3]
    assert image.shape == (1, size, size) and target.shape == (size, size)
    assert (image[0][target == 1] > -1).all()
    assert torch.unique(image).numel() == 3
