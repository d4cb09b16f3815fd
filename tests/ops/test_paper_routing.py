"""Routing by learned surrogates: scores by chunks, Top-K, and SA Top-K that equals its definition to the letter."""

import pytest
import torch
from torch import Tensor, library

from castvision.ops import paper_routing
from castvision.ops.paper_routing import (
    TokenScores,
    best_tokens,
    learned_clusters,
    match_clusters,
    matched_clusters,
    nearest_learned,
    ranked,
)

SCORES = pytest.mark.parametrize(
    ("activation", "score"), [("softmax", "affinity"), ("laplace", "affinity"), ("softmax", "linear")]
)


def match_greedy(scores: Tensor, cluster_size: int) -> Tensor:
    """The definition of SA Top-K: scores (N, M) to index (M, K) as :func:`match_clusters` gives it."""
    num_tokens, num_clusters = scores.shape
    pairs = sorted((-value, n, c) for n, row in enumerate(ranked(scores).tolist()) for c, value in enumerate(row))
    members: list[list[int]] = [[] for _ in range(num_clusters)]
    free = [True] * num_tokens
    for _, n, c in pairs:
        if free[n] and len(members[c]) < cluster_size:
            free[n] = False
            members[c].append(n)
    return torch.tensor([sorted(m) + [num_tokens] * (cluster_size - len(m)) for m in members], device=scores.device)


def scores_of(kind: str, num_tokens: int, num_clusters: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_tokens)
    scores = torch.rand(num_tokens, num_clusters, generator=generator)
    if kind == "skewed":
        scores = scores + 2 * torch.randn(num_clusters, generator=generator)
    if kind == "equal":
        scores = torch.zeros_like(scores)
    if kind == "blank":
        scores[: int(0.95 * num_tokens)] = scores[0]
    if kind == "coarse":
        scores = (scores * 4).round()
    if kind == "signed zeros":
        scores = torch.zeros_like(scores)
        scores[::3] = -0.0
    if kind == "nan":
        scores[num_tokens // 4 : num_tokens // 2] = torch.nan
        scores[-1, 0] = torch.nan
    if kind == "masked":
        scores[num_tokens // 4 : num_tokens // 2] = -torch.inf
    if kind == "distance":
        scores = -100 * scores
    return scores


KINDS = ["even", "skewed", "equal", "blank", "coarse", "signed zeros", "nan", "masked", "distance"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(16, 4, 4), (10, 7, 2), (5, 8, 1), (64, 8, 9), (257, 16, 17), (12, 1, 12), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forms_equal_the_definition(kind: str, size: tuple[int, int, int], dtype: torch.dtype, monkeypatch) -> None:
    """In one piece, and streamed by chunks of five tokens."""
    num_tokens, num_clusters, cluster_size = size
    scores = scores_of(kind, num_tokens, num_clusters).to(dtype)
    expected = match_greedy(scores, cluster_size)
    assert sorted(expected.flatten().tolist())[:num_tokens] == list(range(num_tokens))
    for workspace in (1 << 24, 5 * num_clusters):
        monkeypatch.setattr(paper_routing, "WORKSPACE", workspace)
        assert torch.equal(match_clusters(lambda rows: scores[rows], *size), expected)


def test_masked_and_nan_tokens_come_last() -> None:
    scores = torch.rand(20, 4)
    scores[:6], scores[6:10] = -torch.inf, torch.nan
    index = match_clusters(lambda rows: scores[rows], 20, 4, 10)
    alone = match_clusters(lambda rows: scores[10:][rows], 10, 4, 10)
    real = [sorted(t - 10 for t in members if 10 <= t < 20) for members in index.tolist()]
    assert real == [[t for t in members if t < 10] for members in alone.tolist()]


@pytest.mark.parametrize("workspace", [1 << 24, 28])
def test_scores_that_change_still_give_a_partition(workspace: int, monkeypatch) -> None:
    monkeypatch.setattr(paper_routing, "WORKSPACE", workspace)
    generator = torch.Generator().manual_seed(0)

    def score(rows: slice | Tensor) -> Tensor:
        return torch.rand(len(torch.arange(40)[rows]), 4, generator=generator)

    assert sorted(match_clusters(score, 40, 4, 10).flatten().tolist()) == list(range(40))


def test_rounds_ask_for_scores_within_the_workspace(monkeypatch) -> None:
    """All at once if they fit; else always the same number of rows, since another might round otherwise."""
    scores, asked = scores_of("skewed", 50, 4), []

    def score(rows: slice | Tensor) -> Tensor:
        asked.append(len(scores[rows]))
        return scores[rows]

    match_clusters(score, 50, 4, 13)
    assert asked == [50]
    monkeypatch.setattr(paper_routing, "WORKSPACE", 4 * 16 + 3)
    asked.clear()
    match_clusters(score, 50, 4, 13)
    assert set(asked[1:]) == {16} and len(asked) > 5 and asked[0] == 0


def test_places_must_suffice() -> None:
    with pytest.raises(ValueError, match=r"M \* K >= N, got M=2, K=3, N=7"):
        match_clusters(lambda rows: torch.rand(7, 2)[rows], 7, 2, 3)


def learned_scores(
    q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, mask: Tensor | None, activation: str, score: str
) -> list[TokenScores]:
    flat = surrogates.transpose(0, 1).flatten(1)
    return [
        TokenScores(q[b].flatten(1), k[b].flatten(1), flat, phi[b].sigmoid(), None, None if mask is None else mask[b],
                    activation, score)
        for b in range(len(q))
    ]  # fmt: skip


def draw(num_tokens: int, num_clusters: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """q, k, surrogates, phi of two images, two heads."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, num_tokens, 2, 4), (2, num_tokens, 2, 4), (2, num_clusters, 4), (2, num_tokens, 1))
    return tuple(torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)


@SCORES
@pytest.mark.parametrize("block", [1 << 18, 12])
def test_scores_are_those_of_the_paper(activation: str, score: str, block: int, monkeypatch) -> None:
    monkeypatch.setattr(paper_routing, "_CPU_BLOCK", block)
    q, k, surrogates, phi = draw(21, 4, torch.float64)
    a_q, a_k = (torch.einsum("bnhd,hmd->bnm", x, surrogates) for x in (q, k))
    lean = phi.sigmoid()
    if score == "linear":
        expected = lean * a_q + (1 - lean) * a_k
    elif activation == "softmax":
        expected = lean * a_q.softmax(2) + (1 - lean) * a_k.softmax(2)
    else:
        expected = lean * paper_routing.laplace(a_q * 8**-0.5) + (1 - lean) * paper_routing.laplace(a_k * 8**-0.5)
    mask = torch.rand(2, 21) > 0.3
    expected = expected.masked_fill(~mask[..., None], -torch.inf)
    for b, scores in enumerate(learned_scores(q, k, surrogates, phi, mask, activation, score)):
        torch.testing.assert_close(scores(slice(0, 21)), expected[b])
        torch.testing.assert_close(scores(slice(5, 99)), expected[b, 5:])
        some = torch.tensor([20, 3, 3, 11])
        torch.testing.assert_close(scores(some), expected[b, some])


@SCORES
@pytest.mark.parametrize("workspace", [1 << 24, 64])
def test_learned_clusters_equal_the_definition(activation: str, score: str, workspace: int, monkeypatch) -> None:
    monkeypatch.setattr(paper_routing, "WORKSPACE", workspace)
    operands, mask = draw(41, 4), torch.rand(2, 41) > 0.3
    tables = [s(slice(0, 41)) for s in learned_scores(*operands, mask, activation, score)]
    assert all(torch.equal(match_clusters(lambda r, s=s: s[r], 41, 4, 11), match_greedy(s, 11)) for s in tables)
    partition = learned_clusters(*operands, mask, 11, "sa_topk", activation, score)
    assert torch.equal(partition, torch.stack([match_greedy(s, 11) for s in tables]))
    best = learned_clusters(*operands, mask, 11, "topk", activation, score)
    assert torch.equal(best, torch.stack([s.T.topk(11, 1)[1] for s in tables]))


def test_top_k_prefers_real_tokens_and_pads() -> None:
    scores = torch.rand(9, 2)
    scores[0], scores[1] = torch.nan, -torch.inf
    index = best_tokens(lambda rows: scores[rows], 9, 2, 7)
    assert all(sorted(row) == list(range(2, 9)) for row in index.tolist())
    index = best_tokens(lambda rows: scores[rows], 9, 2, 12)
    assert index.shape == (2, 12) and all(row[9:] == [9] * 3 for row in index.tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@SCORES
@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
def test_masked_tokens_come_last_at_any_size_of_logits(dtype, activation: str, score: str, assignment: str) -> None:
    """Also where real scores are -1e5: whole clusters are left to the tokens that are real."""
    q, k, surrogates, phi = draw(12, 3, dtype)
    for size in (1e4, 1e8):
        mask = torch.ones(2, 12, dtype=torch.bool)
        mask[:, ::2] = False
        index = learned_clusters(q * size, k, surrogates, phi, mask, 6, assignment, activation, score)
        if assignment == "topk":
            assert bool(mask.gather(1, index.flatten(1)).all())
        else:
            alone = learned_clusters(q[:, 1::2] * size, k[:, 1::2], surrogates, phi[:, 1::2], None, 6, "sa_topk",
                                     activation, score)  # fmt: skip
            real = [[(t - 1) // 2 for t in row if t < 12 and t % 2] for row in index.flatten(0, 1).tolist()]
            assert real == [[t for t in row if t < 6] for row in alone.flatten(0, 1).tolist()]


@SCORES
@pytest.mark.parametrize("workspace", [1 << 24, 64])
def test_nearest_learned(activation: str, score: str, workspace: int, monkeypatch) -> None:
    monkeypatch.setattr(paper_routing, "WORKSPACE", workspace)
    operands = draw(41, 4)
    tables = [s(slice(0, 41)) for s in learned_scores(*operands, None, activation, score)]
    assert torch.equal(nearest_learned(*operands, activation, score), torch.stack(tables).argmax(2))


@pytest.mark.parametrize("workspace", [1 << 24, 64])
def test_matched_clusters(workspace: int, monkeypatch) -> None:
    """Nearest first; a cluster that is not usable takes what the others cannot hold, masked tokens come last."""
    monkeypatch.setattr(paper_routing, "WORKSPACE", workspace)
    features, centers = torch.randn(2, 41, 3).double(), torch.randn(2, 4, 3).double()
    usable, mask = torch.ones(2, 4, dtype=torch.bool), torch.rand(2, 41) > 0.3
    usable[1, 2] = False
    scores = -(features[:, :, None] - centers[:, None]).square().sum(3)
    scores = scores.masked_fill(~(usable[:, None] & mask[..., None]), -torch.inf)
    expected = torch.stack([match_greedy(s, 15) for s in scores])
    assert torch.equal(matched_clusters(features, centers, usable, mask, 15), expected)
    real = mask[1].sum()
    assert real <= 45 and not mask[1].new_tensor([*mask[1], False])[expected[1, 2]].any()


@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
def test_nan_tokens_and_images(assignment: str) -> None:
    q, k, surrogates, phi = draw(12, 3)
    expected = learned_clusters(q, k, surrogates, phi, None, 4, assignment)
    q[1, 3:9], k[0, :] = torch.nan, k[0, :]
    index = learned_clusters(q, k, surrogates, phi, None, 4, assignment)
    assert torch.equal(index[0], expected[0])
    if assignment == "sa_topk":
        assert sorted(index[1].flatten().tolist()) == list(range(12))


def test_autocast_and_half_precision_do_not_round_scores() -> None:
    operands = tuple(x.bfloat16() for x in draw(300, 4))
    expected = learned_clusters(*(x.float() for x in operands), None, 75, "sa_topk")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(learned_clusters(*operands, None, 75, "sa_topk"), expected)
        assert torch.equal(learned_clusters(*(x.float() for x in operands), None, 75, "sa_topk"), expected)


@pytest.mark.parametrize("assignment", ["topk", "sa_topk"])
def test_the_operator_obeys_the_rules_of_torch_library(assignment: str) -> None:
    operands = draw(12, 3)
    mask = torch.ones(2, 12, dtype=torch.bool)
    q, k, surrogates, phi = operands
    flat = (q.flatten(2), k.flatten(2), surrogates.transpose(0, 1).flatten(1)[None])
    library.opcheck(torch.ops.castvision.route.default, (*flat, phi, None, mask, 4, assignment, "softmax", "affinity"))
    usable = torch.ones(2, 3, dtype=torch.bool)
    library.opcheck(
        torch.ops.castvision.route.default,
        (
            flat[0],
            flat[1],
            flat[2].expand(2, -1, -1).contiguous(),
            None,
            usable,
            mask,
            4,
            "sa_topk",
            "softmax",
            "nearness",
        ),
    )
