"""Cross-covariance attention against its equation, channel by channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from castvision.peers.xcit import Xcit
from tests.peers.cases import check_definition, make_case


def definition(core: Xcit):
    heads = iter(core.temperature.detach().double().flatten().tolist() * 9)

    def rows(q: Tensor, k: Tensor, v: Tensor, p: int, real: Tensor) -> Tensor:
        tau = next(heads)
        q, k, v = q[p:] * real[:, None], k[p:] * real[:, None], v[p:]
        q, k = q / q.norm(dim=0), k / k.norm(dim=0)
        channels = range(q.shape[1])
        out = []
        for j in channels:
            weights = torch.stack([k[:, i] @ q[:, j] / tau for i in channels]).softmax(0)
            out.append(sum(weights[i] * v[:, i] for i in channels))
        return torch.stack(out, 1)

    return rows


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
def test_definition(prefix: int, masked: bool) -> None:
    core = Xcit(2, 4)
    with torch.no_grad():
        core.temperature.copy_(torch.tensor([0.5, 2.0])[:, None, None])
    check_definition(core, definition(core), make_case(prefix=prefix, masked=masked))


def test_a_head_of_one_channel_gives_its_values() -> None:
    case = make_case(width=1, prefix=0)
    torch.testing.assert_close(case.run(Xcit(2, 1)), case.v)
