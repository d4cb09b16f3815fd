"""SECViT against its equations, token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from castvision.peers.chunks import EqualChunks
from castvision.peers.secvit import SecVit
from tests.peers.cases import check_definition, check_is_full, make_case, over


def definition(chunk_size: int):
    def rows(q: Tensor, k: Tensor, v: Tensor, p: int, real: Tensor) -> Tensor:
        number = len(q) - p
        center = k[p:][real].mean(0).detach()
        likeness = [float(torch.cosine_similarity(each, center, 0)) for each in k[p:].detach()]
        order = sorted(range(number), key=lambda n: (not real[n], likeness[n]))
        runs, out = -(-number // chunk_size), [None] * number
        for c in range(runs):
            members = order[c * number // runs : (c + 1) * number // runs]
            keys = [*range(p), *(p + n for n in members if real[n])]
            for n in members:
                out[n] = over(q[p + n], k[keys], v[keys]) if keys else torch.zeros_like(q[0])
        return torch.stack(out)

    return rows


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("chunk_size", [6, 12, 35])
def test_definition(chunk_size: int, prefix: int, masked: bool) -> None:
    case = make_case(prefix=prefix, masked=masked)
    check_definition(SecVit(2, 4, chunk_size=chunk_size), definition(chunk_size), case)


@pytest.mark.parametrize("masked", [False, True])
def test_one_cluster_is_full_attention(masked: bool) -> None:
    check_is_full(SecVit(2, 4, chunk_size=35), make_case(masked=masked))


def test_sizes_differ_by_one_at_most() -> None:
    for number in range(1, 40):
        chunks = EqualChunks(number, 6, 1.0, torch.device("cpu"))
        sizes = chunks.real.sum(1)
        assert sizes.sum() == number
        assert sizes.max() - sizes.min() <= 1
        assert sizes.max() <= 6
        order = torch.randperm(number)[None, None]
        tokens = torch.randn(1, 1, number, 3)
        assert torch.equal(chunks.join(chunks.cut(tokens, order), order), tokens)
