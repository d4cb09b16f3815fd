"""Routing: three forms of SA Top-K agree to the letter, indices and their inverses are exact."""

from __future__ import annotations

import pytest
import torch

from castvision.ops import make_routing, window_size
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
    assert torch.equal(match_rounds(scores, cluster_size), expected)
    heaps = match_heaps(lambda rows: scores[rows], num_tokens, num_clusters, cluster_size)
    assert torch.equal(heaps, expected)
    monkeypatch.setattr("castvision.ops._matching.WORKSPACE", 5 * num_clusters)
    streamed = match_heaps(lambda rows: scores[rows], num_tokens, num_clusters, cluster_size)
    assert torch.equal(streamed, expected)
    assert sorted(expected.flatten().tolist())[:num_tokens] == list(range(num_tokens))


def test_nan_scores_still_give_a_partition() -> None:
    scores = scores_of("even", 20, 4)
    scores[3:9] = torch.nan
    for index in (match_rounds(scores, 5), match_heaps(lambda rows: scores[rows], 20, 4, 5)):
        assert sorted(index.flatten().tolist()) == list(range(20))


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
