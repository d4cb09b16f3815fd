"""Routing: three forms of SA Top-K agree to the letter, indices and their inverses are exact."""

from __future__ import annotations

import pytest
import torch

from castvision.ops import make_routing, window_size
from castvision.ops._affinity import make_scorers
from castvision.ops._matching import match_greedy, match_heaps, match_rounds
from castvision.ops.routing import random_clusters, window_clusters


def scores_of(kind: str, num_tokens: int, num_clusters: int) -> torch.Tensor:
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
    return scores


@pytest.mark.parametrize("kind", ["even", "skewed", "equal", "blank", "coarse"])
@pytest.mark.parametrize("size", [(16, 4, 4), (10, 7, 2), (5, 8, 1), (64, 8, 9), (257, 16, 17), (12, 1, 12)])
def test_forms_equal_the_definition(kind: str, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    num_tokens, num_clusters, cluster_size = size
    scores = scores_of(kind, num_tokens, num_clusters)
    expected = match_greedy(scores, cluster_size)
    for match in (match_rounds, match_heaps):
        assert torch.equal(match(lambda rows: scores[rows], *size), expected)
    monkeypatch.setattr("castvision.ops._matching.WORKSPACE", 5 * num_clusters)
    for match in (match_rounds, match_heaps):
        assert torch.equal(match(lambda rows: scores[rows], *size), expected)
    assert sorted(expected.flatten().tolist())[:num_tokens] == list(range(num_tokens))


def test_nan_scores_still_give_a_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = scores_of("even", 20, 4)
    scores[3:9] = torch.nan
    for workspace in (80, 28):
        monkeypatch.setattr("castvision.ops._matching.WORKSPACE", workspace)
        for match in (match_rounds, match_heaps):
            index = match(lambda rows: scores[rows], 20, 4, 5)
            assert sorted(index.flatten().tolist()) == list(range(20))


def test_signed_zeros_tie_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros(8, 2)
    zeros[::3] = -0.0
    for workspace in (16, 6):
        monkeypatch.setattr("castvision.ops._matching.WORKSPACE", workspace)
        assert torch.equal(match_rounds(lambda rows: zeros[rows], 8, 2, 4), match_greedy(zeros, 4))


def test_rounds_ask_for_scores_within_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once if they fit; else always the same number of rows, since another might round otherwise."""
    scores, asked = scores_of("skewed", 50, 4), []

    def score(rows: slice | torch.Tensor) -> torch.Tensor:
        asked.append(len(scores[rows]))
        return scores[rows]

    match_rounds(score, 50, 4, 13)
    assert asked == [50]
    monkeypatch.setattr("castvision.ops._matching.WORKSPACE", 4 * 16 + 3)
    asked.clear()
    match_rounds(score, 50, 4, 13)
    assert set(asked[1:]) == {16} and len(asked) > 5 and asked[0] == 0


@pytest.mark.parametrize("workspace", [1 << 24, 64])
def test_rounds_take_every_score(workspace: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castvision.ops._matching.WORKSPACE", workspace)
    q, k, surrogates, phi = (torch.randn(*s) for s in ((2, 2, 21, 4), (2, 2, 21, 4), (2, 4, 4), (2, 21, 1)))
    mask = torch.rand(2, 21) > 0.3
    for activation, score in (("softmax", "affinity"), ("laplace", "affinity"), ("softmax", "linear")):
        for scorer in make_scorers(q, k, surrogates, phi, mask, activation, score):
            assert torch.equal(match_rounds(scorer, 21, 4, 6), match_heaps(scorer, 21, 4, 6))


def test_inverse_is_exact() -> None:
    index = torch.stack([random_clusters(13, 4, 4, seed) for seed in range(3)])
    routing = make_routing(index, 13, is_partition=True)
    assert routing.inverse is not None
    back = index.flatten(1).gather(1, routing.inverse)
    assert torch.equal(back, torch.arange(13).expand(3, -1))


def test_slots_list_every_membership() -> None:
    index = torch.tensor([[[0, 2], [2, 3], [4, 4]]])  # N = 4: token 1 in none, 2 in two, padding 4
    routing = make_routing(index, 4, is_partition=False)
    assert routing.offsets is not None and routing.slots is not None
    assert routing.offsets.tolist() == [[0, 1, 1, 3, 4]]
    assert routing.slots.tolist() == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize(("grid", "cluster_size"), [((4, 4), 4), ((5, 7), 9), ((1, 6), 4), ((3, 3), 100)])
def test_windows_tile_the_grid(grid: tuple[int, int], cluster_size: int) -> None:
    rows, cols = grid
    index = window_clusters(rows, cols, cluster_size)
    height, width = window_size(rows, cols, cluster_size)
    assert index.shape == (-(-rows // height) * -(-cols // width), height * width)
    real = index[index < rows * cols]
    assert sorted(real.tolist()) == list(range(rows * cols))
    first = index[0][index[0] < rows * cols]
    assert int((first // cols).max()) < height and int((first % cols).max()) < width


def test_random_clusters_are_fixed_by_seed_and_size() -> None:
    assert torch.equal(random_clusters(20, 4, 5, 1), random_clusters(20, 4, 5, 1))
    assert not torch.equal(random_clusters(20, 4, 5, 1), random_clusters(20, 4, 5, 2))
