"""Nyström attention against its equations."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from castvision.peers.nystrom import Nystrom, pseudo_inverse
from tests.peers.cases import SCALE, check_definition, check_is_full, make_case


def definition(landmarks: int, iterations: int):
    def rows(q: Tensor, k: Tensor, v: Tensor, p: int, real: Tensor) -> Tensor:
        number = len(q) - p
        starts = [-(-i * number // landmarks) for i in range(landmarks + 1)]
        mark_q, mark_k = (torch.stack([x[p:][a:b].mean(0) for a, b in pairwise(starts)]) for x in (q, k))
        left = (q[p:] @ mark_k.T * SCALE).softmax(1)
        a = (mark_q @ mark_k.T * SCALE).softmax(1)
        z = a.T / (a.detach().norm(1, 0).max() * a.detach().norm(1, 1).max())
        one = torch.eye(landmarks, dtype=a.dtype)
        for _ in range(iterations):
            z = 0.25 * z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z)))
        return left @ z @ (mark_q @ k.T * SCALE).softmax(1) @ v

    return rows


@pytest.mark.parametrize("prefix", [0, 2])
@pytest.mark.parametrize("landmarks", [1, 4, 12])
def test_definition(landmarks: int, prefix: int) -> None:
    check_definition(Nystrom(2, 4, num_landmarks=landmarks), definition(landmarks, 6), make_case(prefix=prefix))


def test_with_every_token_a_landmark_it_is_full_attention() -> None:
    case = make_case((2, 3), width=8)
    check_is_full(Nystrom(2, 8, num_landmarks=100, iterations=40), case, 1e-6)


def test_the_iteration_gives_the_pseudo_inverse() -> None:
    a = torch.randn(3, 6, 6, dtype=torch.float64).softmax(-1)
    torch.testing.assert_close(pseudo_inverse(a, 60), torch.linalg.pinv(a), rtol=1e-6, atol=1e-6)


def test_masked_tokens_are_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="landmarks are means of equal runs"):
        make_case(masked=True).run(Nystrom(2, 4))
