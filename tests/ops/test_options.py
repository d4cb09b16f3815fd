"""Options and clusters that do not fit are refused by name, before any work."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from castvision.layers import CastAttention
from castvision.ops import AttentionOptions, Routing, cast_attention, coverage, make_options, resample_surrogates
from castvision.ops.partitions import (
    _exported_window_size,
    block_labels,
    cluster_grid,
    index_of,
    labels_of,
    random_index,
    sample_positions,
    window_size_for,
)


def test_presets() -> None:
    assert make_options() == AttentionOptions()
    paper = make_options("paper")
    assert (paper.mixing, paper.neighborhood, paper.surrogates, paper.assignment) == (
        "surrogate",
        "cluster",
        "learned",
        "topk",
    )
    assert make_options("paper", assignment="sa_topk", num_clusters=None).assignment == "sa_topk"


@pytest.mark.parametrize(
    ("attention", "finer", "message"),
    [
        ("near_fra", {}, "did you mean 'near_far'"),
        ("near_far", {"assignment": "topk"}, "assignment.*mixing='joint'"),
        ("near_far", {"neighborhood": "cluster"}, "assignment.*neighborhood='cluster', got assignment='nearest'"),
        ("near_far", {"neighborhood": "cluster", "assignment": "blocks", "window_size": 4}, "no window_size"),
        ("near_far", {"activation": "laplace"}, "activation"),
        ("near_far", {"cluster_size": 4}, "give num_clusters"),
        ("near_far", {"assignment": "blocks", "cluster_size": 4}, "no cluster_size.*rectangles"),
        ("paper", {"assignment": "blocks", "cluster_size": 4}, "no cluster_size.*rectangles"),
        ("near_far", {"summaries": "surrogate_weighted"}, "summaries"),
        ("near_far", {"surrogates": "averaged", "assignment": "random"}, "averaged"),
        ("near_far", {"window_size": 0}, "window_size to be a whole number >= 1"),
        ("near_far", {"refinements": -1}, "refinements"),
        ("near_far", {"anchors": 2.5}, "anchors"),
        ("near_far", {"shift_windows": "no"}, "shift_windows to be True or False, got shift_windows='no'"),
        ("near_far", {"shift_windows": 1}, "shift_windows to be True or False"),
        ("near_far", {"cluster_factor": "2"}, "cluster_factor > 0"),
        ("near_far", {"cluster_factor": float("inf")}, "a finite number"),
        ("paper", {"laplace_norm": 1}, "laplace_norm to be True or False"),
        ("paper", {"anchors": 4}, "no anchors"),
        ("paper", {"surrogates": "sampled"}, "surrogates"),
        ("paper", {"neighborhood": "window"}, "neighborhood"),
        ("paper", {"assignment": "nearest"}, "assignment"),
    ],
)
def test_impossible_combinations(attention: str, finer: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_options(attention, **finer)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="did you mean 'window_size'"):
        make_options(windowsize=4)
    with pytest.raises(TypeError, match="unexpected argument 'colour'"):
        CastAttention(16, 2, colour="red")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid_size": [3, 4]}, "rows \\* cols = 9"),
        ({"num_prefix_tokens": 11}, "num_prefix_tokens"),
        ({"dropout_p": 1.5}, "dropout_p"),
        ({"token_mask": torch.ones(2, 3)}, "token_mask"),
        ({"backend": "fats"}, "did you mean 'fast'"),
        ({"k_route": torch.ones(2, 9, 2, 4), "num_prefix_tokens": 1}, "k_route .*N=8.*without prefix tokens"),
        ({"q_route": torch.ones(1, 9, 2, 4)}, "q_route .*B=2"),
        ({"surrogate_tokens": torch.ones(2, 3, 4)}, "surrogate_tokens"),
        ({"options": make_options("paper")}, "surrogate_tokens"),
        ({"options": make_options("paper"), "surrogate_tokens": torch.ones(2, 3, 4)}, "phi"),
    ],
)
def test_bad_operands_are_named(change: dict[str, Any], message: str) -> None:
    x = torch.randn(2, 9, 2, 4)
    with pytest.raises(ValueError, match=message):
        cast_attention(x, x, x, **{"options": make_options(), **change})


@pytest.mark.parametrize("assignment", ["random", "sa_topk"])
@pytest.mark.parametrize("num_clusters", [7, None])
def test_clusters_have_room_for_all(assignment: str, num_clusters: int | None) -> None:
    """Seven clusters asked for are six on this grid; four tokens were in none."""
    x = torch.randn(1, 64, 1, 4)
    options = make_options(assignment=assignment, num_clusters=num_clusters, cluster_size=10 if num_clusters else 3)
    with pytest.raises(ValueError, match=r"room for all, got (6 \* 10|16 \* 3)"):
        cast_attention(x, x, x, options, [8, 8])


def test_operands_of_different_kinds() -> None:
    x = torch.randn(1, 4, 1, 4)
    with pytest.raises(TypeError, match="cast them first"):
        cast_attention(x, x.double(), x, make_options())
    with pytest.raises(ValueError, match="one shape"):
        cast_attention(x, x[:, :2], x, make_options())


class TestRoutings:
    """A routing that a user hands back must be of the kind and the sizes of the call; none gives uninitialised rows."""

    def layer(self, **options: Any) -> CastAttention:
        torch.manual_seed(0)
        return CastAttention(16, 2, num_clusters=3, attention="paper", **options).eval()

    def routing(self, layer: CastAttention, x: torch.Tensor) -> Routing:
        return layer(x, return_routing=True)[1]

    def test_of_another_kind(self) -> None:
        """It used to give rows that nobody wrote."""
        x = torch.randn(2, 9, 16)
        topk = self.routing(self.layer(assignment="topk"), x)
        with pytest.raises(ValueError, match="made by assignment='sa_topk', got one made by 'topk'"):
            self.layer(assignment="sa_topk")(x, routing=topk)
        with pytest.raises(ValueError, match="made by assignment='nearest'"):
            CastAttention(16, 2)(x, routing=topk)

    @pytest.mark.parametrize(
        ("spoil", "error", "message"),
        [
            (lambda r: r._replace(index=r.index[:1], labels=r.labels[:1]), ValueError, "B=2"),
            (lambda r: r._replace(index=r.index[:, :2]), ValueError, "M=3"),
            (lambda r: r._replace(num_clusters=4), ValueError, "M=3 clusters, got one of 4"),
            (lambda r: r._replace(labels=r.labels[:, :5]), ValueError, "N=9"),
            (lambda r: r._replace(index=r.index + 5), ValueError, "from 0 to 9"),
            (lambda r: r._replace(index=r.index.clone().fill_(1)), ValueError, "twice"),
            (lambda r: r._replace(labels=r.labels.flip(1)), ValueError, "disagree"),
            (lambda r: r._replace(labels=r.labels - 1), ValueError, "from 0 to 3"),
            (lambda r: r._replace(index=r.index.to("meta")), TypeError, "meta"),
            (lambda r: r._replace(index=r.index.float()), TypeError, "int64"),
        ],
    )
    def test_that_does_not_fit(self, spoil: Any, error: type[Exception], message: str) -> None:
        x = torch.randn(2, 9, 16)
        layer = self.layer(assignment="sa_topk")
        routing = self.routing(layer, x)
        torch.testing.assert_close(layer(x, routing=routing), layer(x))
        with pytest.raises(error, match=message):
            layer(x, routing=spoil(routing))


def test_default_sizes_follow_the_number_of_tokens() -> None:
    sides = (4, 8, 16, 32, 37, 64, 128, 256)
    assert [window_size_for(n, n) for n in sides] == [2, 4, 4, 8, 8, 8, 16, 16]
    assert window_size_for(1, 1) == 2
    assert [cluster_grid(n, n, None) for n in (8, 32, 128)] == [(4, 4), (8, 8), (16, 16)]
    assert cluster_grid(3, 4, 12) == (3, 4)
    assert cluster_grid(3, 4, 99) == (3, 4)
    assert cluster_grid(1, 10, 5) == (1, 5)
    assert cluster_grid(100, 1, 10) == (10, 1)  # as (1, 10) of the same turned on its side
    assert cluster_grid(1000, 1, None) == (63, 1)
    assert cluster_grid(100, 2, None) == (28, 1)
    down, across = cluster_grid(64, 16, 64)
    assert (down, across) == (16, 4)


def test_an_export_chooses_the_same_windows() -> None:
    """By tensors, since it may not branch on sizes."""
    for rows in (1, 2, 3, 7, 16, 31, 64, 100, 256):
        for cols in (1, 2, 5, 8, 17, 32, 77, 128, 256):
            assert _exported_window_size(rows, cols) == window_size_for(rows, cols), (rows, cols)


def test_positions_and_blocks_by_hand() -> None:
    like = torch.empty(0)
    assert sample_positions(3, 5, 2, 3, like).tolist() == [0, 2, 4, 10, 12, 14]
    assert sample_positions(3, 5, 1, 1, like).tolist() == [0]
    assert block_labels(2, 5, 1, 2, like).tolist() == [0, 0, 0, 1, 1] * 2
    labels = torch.tensor([1, 0, 1, 0, 0])
    assert index_of(labels, 2, 3).tolist() == [[1, 3, 4], [0, 2, 5]]
    assert labels_of(index_of(labels, 2, 3)[None], 5).tolist() == [labels.tolist()]


def test_random_partitions() -> None:
    like = torch.empty(0)
    one, other = (random_index(1000, 7, 143, seed, like) for seed in (0, 1))
    assert sorted(one[one < 1000].tolist()) == list(range(1000))
    assert (one < 1000).sum(1).min() >= 142
    assert torch.equal(one, random_index(1000, 7, 143, 0, like))
    labels = labels_of(torch.stack([one, other]), 1000)
    assert 0.08 < (labels[0] == labels[1]).float().mean() < 0.21  # 1 / 7 by chance
    steps = (labels[0, 1:] - labels[0, :-1]) % 7
    assert steps.bincount(minlength=7).min() > 90  # neighbours are no neighbours there


def test_coverage_counts_tokens() -> None:
    overlapping = Routing("topk", 2, None, torch.tensor([[[0, 1], [1, 2]]]))
    assert coverage(overlapping, 5).tolist() == [pytest.approx([0.4, 0.4, 0.2])]
    free = Routing("nearest", 3, torch.tensor([[0, 1, 3, 3]]), None)
    assert coverage(free, 4).tolist() == [pytest.approx([0.5, 0.5, 0.0])]


def test_resampled_surrogates() -> None:
    surrogates = torch.randn(2, 3, 4)
    assert torch.equal(resample_surrogates(surrogates, 3), surrogates)
    assert torch.equal(resample_surrogates(surrogates, 5), surrogates[:, [0, 1, 2, 0, 1]])
    pairs = torch.cat([surrogates, surrogates + 1e-3], 1)
    fewer = resample_surrogates(pairs, 3)
    matched = torch.cdist(fewer.transpose(0, 1).flatten(1), (surrogates + 5e-4).transpose(0, 1).flatten(1)).amin(1)
    assert matched.max() < 1e-5
    assert torch.isfinite(resample_surrogates(torch.zeros(1, 6, 2), 4)).all()
