"""Neighbourhood attention against its definition, token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from castvision.peers.neighborhood import Neighborhood
from tests.peers.cases import check_definition, check_is_full, make_case, over


def begin(i: int, side: int, size: int) -> int:
    """Where the neighbourhood of place i begins: in the middle of it, moved inwards at the border."""
    return 0 if side <= size else min(max(i - size // 2, 0), side - size)


def definition(grid: tuple[int, int], size: int):
    def rows(q: Tensor, k: Tensor, v: Tensor, p: int, real: Tensor) -> Tensor:
        out = []
        for n in range(len(q) - p):
            top, left = begin(n // grid[1], grid[0], size), begin(n % grid[1], grid[1], size)
            places = [
                (i, j) for i in range(top, min(top + size, grid[0])) for j in range(left, min(left + size, grid[1]))
            ]
            keys = [*range(p), *(p + i * grid[1] + j for i, j in places if real[i * grid[1] + j])]
            out.append(over(q[p + n], k[keys], v[keys]) if keys else torch.zeros_like(q[0]))
        return torch.stack(out)

    return rows


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize(("grid", "size"), [((5, 7), 3), ((12, 19), 5), ((3, 18), 7), ((9, 1), 1), ((17, 9), 9)])
def test_definition(grid: tuple[int, int], size: int, prefix: int, masked: bool) -> None:
    case = make_case(grid, prefix=prefix, masked=masked, batch=2)
    check_definition(Neighborhood(2, 4, kernel_size=size), definition(grid, size), case)


@pytest.mark.parametrize("masked", [False, True])
def test_a_neighbourhood_of_the_whole_grid_is_full_attention(masked: bool) -> None:
    check_is_full(Neighborhood(2, 4, kernel_size=21), make_case((11, 20), masked=masked))


def test_an_even_size_is_refused() -> None:
    with pytest.raises(ValueError, match="odd kernel_size"):
        Neighborhood(2, 4, kernel_size=4)
