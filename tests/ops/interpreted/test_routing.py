"""Affinities in Triton equal plain torch's, and the matching equals the definition to the letter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch.utils._python_dispatch import TorchDispatchMode

from castvision.ops import _affinity, _triton, _triton_affinity, _triton_matching
from castvision.ops._affinity import make_scorers
from castvision.ops._matching import match_greedy
from castvision.ops._triton_affinity import affinity, recipe, score_tile, tile_of
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


@pytest.mark.parametrize("workspace", [100, 50])
def test_operator_gives_the_same_partition(workspace: int, kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the operator, an image at a time, or without a table; masked tokens take what is left."""
    q, k, surrogates, phi = (torch.randn(*s) for s in ((2, 2, 21, 4), (2, 2, 21, 4), (2, 4, 4), (2, 21, 1)))
    mask = torch.rand(2, 21) > 0.3
    operands = (q, k, surrogates, phi, mask, 6, "sa_topk", "softmax", "affinity")
    expected = torch.ops.castvision.route(*operands)
    monkeypatch.setattr("castvision.ops._affinity.WORKSPACE", workspace)
    monkeypatch.setattr("castvision.ops.routing.make_scorers", None)  # plain torch's path is gone
    with kernels():
        assert torch.equal(torch.ops.castvision.route(*operands), expected)


def operands_of(kind: str, num_tokens: int, num_clusters: int, head_dim: int) -> tuple[torch.Tensor, ...]:
    """Two images' q, k (B, N, H, D), surrogates, phi and mask, whose affinities are of this kind."""
    generator = torch.Generator().manual_seed(num_tokens)
    q, k = torch.randn(2, 2, num_tokens, 2, head_dim, generator=generator) / 2
    surrogates, phi = torch.randn(2, num_clusters, head_dim, generator=generator), torch.zeros(2, num_tokens)
    mask = torch.rand(2, num_tokens, generator=generator) > 0.2
    if kind == "skewed":
        q, k = q + 0.3, k + 0.3
    if kind == "equal":
        q, k = torch.zeros_like(q), torch.zeros_like(k)
    if kind == "blank":
        q[:, 4:], k[:, 4:] = q[:, :1], k[:, :1]
    if kind == "coarse":
        q, k, surrogates = q.round(), k.round(), surrogates.round()
    return q, k, surrogates, phi, mask


@pytest.mark.parametrize(
    ("kind", "images", "masked", "rounds", "size"),
    [
        ("even", 2, True, 4, (35, 19, 2)),
        ("skewed", 1, True, 1, (35, 19, 2)),
        ("skewed", 1, False, 0, (35, 19, 2)),
        ("blank", 1, False, 1, (35, 19, 2)),
        ("equal", 2, True, 1, (50, 7, 8)),
        ("coarse", 1, False, 1, (35, 19, 2)),
        ("coarse", 1, True, 4, (45, 3, 17)),
    ],
)
def test_partition_without_a_table(
    kind: str, images: int, masked: bool, rounds: int, size: tuple[int, int, int], kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The definition on the table that :func:`affinity` would give, to the letter; tiles of 16, none of them full."""
    for module, name, value in (
        (_triton_affinity, "BLOCK_N", 16), (_triton_affinity, "BLOCK_M", 16), (_affinity, "WORKSPACE", 32),
        (_triton_matching, "RECIPE_ROUNDS", rounds), (_triton_matching, "BATCH", 16), (_triton_matching, "SCAN", 16),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    q, k, surrogates, phi, mask = operands_of(kind, *size[:2], 6)
    q, k, phi, token_mask = q[:images], k[:images], phi[:images], mask[:images] if masked else None
    with kernels():
        table = affinity(q, k, surrogates, phi, token_mask)
        got = _triton.partition(
            q.transpose(1, 2), k.transpose(1, 2), surrogates, phi[..., None], token_mask, size[2]
        )  # fmt: skip
    assert torch.equal(got, torch.stack([match_greedy(scores, size[2]) for scores in table]))


class Idle:
    """A kernel that does nothing."""

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class Watch(TorchDispatchMode):
    """The largest tensor that any operation gives, and the names of all operations."""

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.names = 0, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            self.largest = max(self.largest, tensor.numel())
        self.names.add(str(func))
        return result


@pytest.mark.parametrize(("workspace", "holds"), [(999_999, False), (1_000_000, True)])
def test_only_a_table_within_the_workspace(workspace: int, holds: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10,000 tokens and 100 clusters; and nothing makes the host wait for the device."""
    monkeypatch.setattr(_affinity, "WORKSPACE", workspace)
    monkeypatch.setattr(_triton_affinity, "_affinity", Idle())
    monkeypatch.setattr(_triton_affinity, "_totals", Idle())
    for name in ("_wish_all", "_choose_all", "_place_rest"):
        monkeypatch.setattr(_triton_matching, name, Idle())
    q = torch.zeros(1, 1, 10_000, 4)
    with Watch() as watch:
        _triton.partition(q, q, torch.zeros(1, 100, 4), q[:, 0, :, :1], None, 100)
    assert watch.largest == 1_000_000 if holds else watch.largest < 250_000
    assert not watch.names & {"aten._local_scalar_dense.default", "aten.nonzero.default"}


@triton.jit
def _scores_of_ids(
    of, totals, ids, scores, N, M,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.load(ids + place, mask=place < N, other=0)
    for start in range(0, M, BLOCK_M):
        clusters = start + tl.arange(0, BLOCK_M)
        score = score_tile(of, totals, 0, tokens, place < N, clusters, N, M, D, BLOCK_D, BLOCK_N, BLOCK_M)
        tl.store(scores + tokens[:, None] * M + clusters[None, :], score, mask=(place < N)[:, None] & (clusters < M))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_scores_of_a_token_do_not_depend_on_its_neighbours(dtype: torch.dtype, kernels: Kernels) -> None:
    """Bit for bit: worked out in any order, they are those of the table."""
    q, k, surrogates, phi, mask = operands_of("even", 75, 150, 20)
    operands = (q[:1].to(dtype), k[:1].to(dtype), surrogates, phi[:1] + 0.3, mask[:1])
    with kernels():
        table, how = affinity(*operands), recipe(*operands)
        got = torch.empty_like(table)
        _scores_of_ids[3,](*how, torch.randperm(75), got, 75, 150, **tile_of(how.of))
    assert torch.equal(got, table)
