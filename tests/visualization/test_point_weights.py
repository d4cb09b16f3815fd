"""Weights of a point against attention written down with one-hot values, and against softmax by hand."""

from __future__ import annotations

import pytest
import timm
import torch

import castvision
from castvision.layers import CastAttention
from castvision.ops import cast_attention, make_options
from castvision.visualization.clusters import cluster_maps
from castvision.visualization.point_weights import shares_of_point, weights_of_point

ROWS, COLS, HEADS = 5, 6, 2


class Pixels(torch.nn.Module):
    """One layer on pixels as tokens."""

    def __init__(self, **options):
        super().__init__()
        self.attn = CastAttention(32, HEADS, **options)

    def forward(self, x):
        return self.attn(x.flatten(2).transpose(1, 2), grid_size=list(x.shape[-2:]))


def one_hot_weights(model, image, options):
    """(N, N): mean over heads of what each token's row says when the values are one-hot."""
    tokens = image.flatten(2).transpose(1, 2)
    q, k, _ = model.attn.qkv(tokens).reshape(1, -1, 3, HEADS, 16).unbind(2)
    count = tokens.shape[1]
    values = torch.eye(count)[None, :, None].expand(1, count, HEADS, count)
    # the scale belongs to the queries' width, which the values' width must equal
    wide = [torch.nn.functional.pad(each, (0, count - 16)) for each in (q, k)]
    out, _ = cast_attention(*wide, values, options, list(image.shape[-2:]), scale=16**-0.5, backend="reference")
    return out[0].mean(1)


@pytest.mark.parametrize(
    "options", [{}, {"summaries": "query_weighted"}, {"summaries": "none"}, {"anchors": 5}], ids=str
)
def test_weights_are_those_of_one_hot_values(options):
    torch.manual_seed(0)
    model = Pixels(window_size=2, num_clusters=5, **options).eval()
    image = torch.randn(1, 32, ROWS, COLS) * 2
    (found,) = cluster_maps(model, image)
    expected = one_hot_weights(model, image, make_options(window_size=2, num_clusters=5, **options))
    for row, col in ((0, 0), (2, 3), (ROWS - 1, COLS - 1)):
        weights = weights_of_point(model, image, found, row, col)
        torch.testing.assert_close(weights.tokens.flatten(), expected[row * COLS + col], atol=2e-5, rtol=0)
        shares = shares_of_point(weights, found, row, col)
        total = shares.window + float(shares.clusters.sum()) + shares.unclustered + shares.elsewhere
        assert total == pytest.approx(1, abs=1e-4)
        assert shares.elsewhere == pytest.approx(0, abs=1e-6)


def test_one_window_for_all_is_softmax_and_prefix_tokens_are_elsewhere():
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", depth=2, reg_tokens=2, num_classes=0).eval()
    castvision.convert(model, window_size=4, num_clusters=3, anchors=0)
    image = torch.randn(1, 3, 64, 64)
    found = cluster_maps(model, image)[1]
    taken = {}
    handle = model.blocks[1].attn.qkv.register_forward_hook(lambda _, args, out: taken.update(qkv=out.detach()))
    with torch.no_grad():
        model(image)
    handle.remove()
    q, k, _ = taken["qkv"].reshape(1, -1, 3, 3, 64).unbind(2)
    expected = torch.einsum("hd,nhd->hn", q[0, 3 + 6] * 64**-0.5, k[0]).softmax(1).mean(0)
    weights = weights_of_point(model, image, found, 1, 2)
    torch.testing.assert_close(weights.tokens.flatten(), expected[3:], atol=1e-6, rtol=1e-4)
    shares = shares_of_point(weights, found, 1, 2)
    assert shares.window == pytest.approx(float(expected[3:].sum()), abs=1e-5)
    assert shares.elsewhere == pytest.approx(float(expected[:3].sum()), abs=1e-5)
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_heads_that_share_values():
    """Grouped queries, as in Sapiens2: four heads, two of keys and values."""
    torch.manual_seed(0)
    sizes = {"depth": 1, "img_size": 64, "embed_dim": 64, "num_heads": 4, "num_kv_heads": 2}
    model = castvision.convert(timm.create_model("vit_base_patch16_sapiens2", **sizes).eval(), window_size=4)
    image = torch.randn(1, 3, 64, 64)
    weights = weights_of_point(model, image, cluster_maps(model, image)[0], 1, 1)
    assert weights.tokens.min() > 0
    assert float(weights.tokens.sum()) + weights.elsewhere == pytest.approx(1, abs=1e-5)


def test_the_papers_attention_has_weights_too():
    torch.manual_seed(0)
    model = timm.create_model(
        "cast_vit_tiny_patch8_224", img_size=32, embed_dim=32, depth=1, num_heads=2, attention="paper"
    ).eval()
    image = torch.randn(1, 3, 32, 32)
    (found,) = cluster_maps(model, image)
    weights = weights_of_point(model, image, found, 0, 0)
    assert float(weights.tokens.sum()) + weights.elsewhere == pytest.approx(1, abs=1e-4)


def test_what_cannot_be_shown_is_refused():
    model = Pixels(window_size=2, num_clusters=5)
    image = torch.randn(1, 32, ROWS, COLS)
    (found,) = cluster_maps(model, image)
    with pytest.raises(ValueError, match="5 × 6 grid, got row 5"):
        weights_of_point(model, image, found, 5, 0)
    with pytest.raises(ValueError, match="layer with clusters of this model"):
        weights_of_point(torch.nn.Identity(), image, found, 0, 0)
    local = Pixels(window_size=2, num_clusters=5, local_branch=True, grid_size=(ROWS, COLS))
    (found,) = cluster_maps(local, image)
    with pytest.raises(ValueError, match="local branch"):
        weights_of_point(local, image, found, 0, 0)
