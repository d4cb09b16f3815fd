"""Joint tokens: windows and a few tokens that see all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from castvision.ops import cast_attention, make_options
from castvision.peers.joint_tokens import JointTokens
from tests.peers.cases import SCALE, check_definition, check_is_full, make_case, over


def definition(grid: tuple[int, int], size: int):
    def rows(q: Tensor, k: Tensor, v: Tensor, p: int, real: Tensor) -> Tensor:
        window = [(n // grid[1] // size, n % grid[1] // size) for n in range(len(q) - p)]
        out = []
        for n in range(len(q) - p):
            keys = [*range(p), *(p + m for m in range(len(q) - p) if window[m] == window[n] and real[m])]
            out.append(over(q[p + n], k[keys], v[keys]))
        return torch.stack(out)

    return rows


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("grid", "size"), [((5, 7), 2), ((4, 9), 4)])
def test_definition(grid: tuple[int, int], size: int, masked: bool) -> None:
    check_definition(JointTokens(2, 4, window_size=size), definition(grid, size), make_case(grid, masked=masked))


def test_one_window_is_full_attention() -> None:
    check_is_full(JointTokens(2, 4, window_size=7), make_case())


def test_it_is_near_and_far_without_summaries() -> None:
    case = make_case((8, 8), prefix=4)
    options = make_options(summaries="none")
    ours = cast_attention(case.q, case.k, case.v, options, [8, 8], 4, scale=SCALE)[0]
    torch.testing.assert_close(case.run(JointTokens(2, 4)), ours)


def test_without_joint_tokens_it_is_refused() -> None:
    with pytest.raises(ValueError, match="reg_tokens"):
        make_case(prefix=0).run(JointTokens(2, 4))
