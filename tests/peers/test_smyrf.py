"""SMYRF against its equations, token by token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from castvision.peers.smyrf import Smyrf
from tests.peers.cases import SCALE, check_definition, check_is_full, make_case


def definition(core: Smyrf, chunk_size: int):
    def rows(q: Tensor, k: Tensor, v: Tensor, p: int, real: Tensor) -> Tensor:
        number = len(q) - p
        chunks = -(-number // chunk_size)
        norm_q, norm_k = q[p:].detach().norm(dim=1) * real, k[p:].detach().norm(dim=1) * real
        radius = norm_q.max() ** 2 + norm_k.max() ** 2
        zero = torch.zeros(number, 1, dtype=q.dtype)
        f = torch.cat([q[p:], zero, (radius - norm_q**2).clamp(min=0).sqrt()[:, None]], 1).detach()
        g = torch.cat([k[p:], (radius - norm_k**2).clamp(min=0).sqrt()[:, None], zero], 1).detach()
        distance = torch.cdist(f, g).square()
        wanted = 2 * (radius - (q[p:] @ k[p:].T).detach())
        torch.testing.assert_close(distance[real][:, real], wanted[real][:, real])  # what the transformation is for
        total, mass = torch.zeros_like(q[p:]), zero.clone()
        for direction in core.directions:
            sorted_q, sorted_k = (
                sorted(range(number), key=lambda n, h=h: (not real[n], float(h[n])))
                for h in (f @ direction, g @ direction)
            )
            numerators, denominators = [None] * number, [None] * number
            for c in range(chunks):
                place = slice(c * number // chunks, (c + 1) * number // chunks)
                keys = [*range(p), *(p + n for n in sorted_k[place] if real[n])]
                for n in sorted_q[place]:
                    e = (k[keys] @ q[p + n] * SCALE).exp()
                    numerators[n], denominators[n] = e @ v[keys], e.sum()
            total, mass = total + torch.stack(numerators), mass + torch.stack(denominators)[:, None]
        return total / mass

    return rows


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rounds", "chunk_size"), [(1, 8), (3, 5), (2, 35)])
def test_definition(rounds: int, chunk_size: int, masked: bool) -> None:
    core = Smyrf(2, 4, seed=1, rounds=rounds, chunk_size=chunk_size)
    check_definition(core, definition(core, chunk_size), make_case(masked=masked))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
def test_one_chunk_is_full_attention_in_any_number_of_rounds(prefix: int, masked: bool) -> None:
    check_is_full(Smyrf(2, 4, rounds=3, chunk_size=35), make_case(prefix=prefix, masked=masked))


def test_chunks_follow_the_image_and_more_of_them_come_nearer_to_full_attention() -> None:
    case = make_case((8, 8), batch=1)
    errors = [(case.run(Smyrf(2, 4, rounds=8, chunk_size=size)) - case.full()).square().mean() for size in (4, 16, 48)]
    assert errors[0] > errors[1] > errors[2]


def test_the_same_directions_in_every_copy_and_others_in_another_layer() -> None:
    assert torch.equal(Smyrf(2, 4, seed=7).directions, Smyrf(2, 4, seed=7).directions)
    assert not torch.equal(Smyrf(2, 4, seed=7).directions, Smyrf(2, 4, seed=8).directions)
