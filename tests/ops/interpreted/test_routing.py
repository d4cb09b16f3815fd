"""Affinities in Triton equal plain torch's, and the matching equals the definition to the letter."""

from __future__ import annotations

import pytest
import torch

from castvision.ops import _triton_matching
from castvision.ops._affinity import make_scorers
from castvision.ops._matching import match_greedy
from castvision.ops._triton_affinity import affinity
from castvision.ops._triton_matching import match
from tests.ops.interpreted.conftest import Kernels
from tests.ops.test_routing import scores_of

KINDS = ["even", "skewed", "equal", "blank", "coarse"]


@pytest.mark.parametrize("kind", KINDS)
def test_matching_equals_the_definition(kind: str) -> None:
    for num_tokens, num_clusters, cluster_size in [(10, 7, 2), (5, 8, 1), (40, 5, 9), (12, 1, 12)]:
        scores = torch.stack([scores_of(kind, num_tokens + 64 * b, num_clusters)[:num_tokens] for b in range(2)])
        expected = torch.stack([match_greedy(s, cluster_size) for s in scores])
        assert torch.equal(match(scores, cluster_size), expected)


@pytest.mark.parametrize("rounds", [0, 1, 3])
@pytest.mark.parametrize("kind", ["skewed", "blank"])
def test_rounds_and_batches_change_nothing(kind: str, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last program alone does it too, in batches smaller than a cluster; clusters of more than one block."""
    monkeypatch.setattr(_triton_matching, "ROUNDS", rounds)
    monkeypatch.setattr(_triton_matching, "BATCH", 32)
    scores = scores_of(kind, 100, 3)
    assert torch.equal(match(scores[None], 40)[0], match_greedy(scores, 40))


def test_each_better_token_evicts_another() -> None:
    """The worst order: all want one cluster, the later the more."""
    scores = torch.stack([torch.arange(40.0), torch.zeros(40), -torch.ones(40)], 1)
    assert torch.equal(match(scores[None], 14)[0], match_greedy(scores, 14))


def test_signed_zeros_are_equal_and_nan_comes_last() -> None:
    zeros = torch.zeros(8, 2)
    zeros[::3] = -0.0
    assert torch.equal(match(zeros[None], 4)[0], match_greedy(zeros, 4))
    scores = scores_of("even", 20, 4)
    scores[3:9] = torch.nan
    index = match(scores[None], 5)[0]
    assert sorted(index.flatten().tolist()) == list(range(20))


def test_too_few_places_end_too() -> None:
    index = match(scores_of("even", 10, 2)[None], 3)[0]
    assert len(set(index.flatten().tolist())) == 6


@pytest.mark.parametrize("num_clusters", [5, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_affinity(num_clusters: int, dtype: torch.dtype) -> None:
    """One tile of clusters, and two passes over several; heads of 24."""
    q, k = (torch.randn(2, 3, 37, 24, dtype=dtype) for _ in range(2))
    surrogates, phi, mask = torch.randn(3, num_clusters, 24), torch.randn(2, 37, 1), torch.rand(2, 37) > 0.3
    scorers = make_scorers(q, k, surrogates, phi, mask, "softmax", "affinity")
    expected = torch.stack([scorer(slice(None)) for scorer in scorers])
    got = affinity(q.transpose(1, 2), k.transpose(1, 2), surrogates, phi[..., 0], mask)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_operator_gives_the_same_partition(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the operator, an image at a time; masked tokens take what is left."""
    q, k, surrogates, phi = (torch.randn(*s) for s in ((2, 2, 21, 4), (2, 2, 21, 4), (2, 4, 4), (2, 21, 1)))
    mask = torch.rand(2, 21) > 0.3
    operands = (q, k, surrogates, phi, mask, 6, "sa_topk", "softmax", "affinity")
    expected = torch.ops.castvision.route(*operands)
    monkeypatch.setattr("castvision.ops._affinity.WORKSPACE", 100)
    monkeypatch.setattr("castvision.ops.routing.make_scorers", None)  # plain torch's path is gone
    with kernels():
        assert torch.equal(torch.ops.castvision.route(*operands), expected)
