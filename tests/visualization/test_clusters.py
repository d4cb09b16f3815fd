"""Windows and clusters as reported: by hand for given clusters, and against what attention really looks at."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import timm
import torch
from torch import nn

from castvision.layers import CastAttention
from castvision.models.context import create_context_segmenter
from castvision.models.convert import convert
from castvision.ops import Routing
from castvision.visualization.clusters import cluster_maps

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}


class Given(nn.Module):
    """One layer on pixels as tokens, with clusters, a mask and a grid that are given."""

    def __init__(self, grid, routing, mask=None, **options):
        super().__init__()
        self.attn = CastAttention(4, 1, **options)
        self.grid, self.routing, self.mask = grid, routing, mask

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        return self.attn(tokens, grid_size=self.grid, routing=self.routing, token_mask=self.mask)


def map_of(grid, routing, mask=None, shape=(3, 4), **options):
    (found,) = cluster_maps(Given(grid, routing, mask, **options), torch.randn(4, *shape))
    return found


def labels(*values, clusters=4):
    return Routing("nearest", clusters, torch.tensor([values]), None)


FREE = labels(0, 0, 2, 2, 0, 1, 1, 2, 0, 1, 0, 4)


def test_windows_and_content_clusters_by_hand():
    found = map_of([3, 4], FREE, window_size=2)
    assert found.layer == "attn"
    assert found.grid_size == (3, 4)
    assert found.membership.tolist() == [[0, 0, 2, 2], [0, 1, 1, 2], [0, 1, 0, -1]]
    assert found.windows.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3]]
    assert found.window_size == (2, 2)
    assert found.cluster_sizes.tolist() == [5, 3, 3, 0]
    assert (found.num_clusters, found.num_dead_clusters) == (4, 1)
    assert found.coverage == pytest.approx((1 / 12, 11 / 12, 0))


def test_shifted_windows_by_hand():
    found = map_of([3, 4], FREE, window_size=2, shift_windows=True)
    assert found.windows.tolist() == [[0, 1, 1, 2], [3, 4, 4, 5], [3, 4, 4, 5]]


def test_masked_tokens_are_in_nothing():
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[0, 8:] = False
    routing = labels(0, 0, 2, 2, 0, 1, 1, 2, 4, 4, 4, 4)
    found = map_of([3, 4], routing, mask, window_size=2)
    assert found.membership[2].tolist() == found.windows[2].tolist() == [-1] * 4
    assert found.windows[:2].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_overlapping_clusters_are_the_windows():
    index = torch.tensor([[[0, 1, 2], [5, 2, 1], [12, 12, 12]]])
    found = map_of([3, 4], Routing("topk", 3, None, index), attention="paper", num_clusters=3)
    assert found.membership.tolist() == [[0, 0, 0, -1], [-1, 1, -1, -1], [-1] * 4]
    assert torch.equal(found.windows, found.membership)
    assert found.window_size is None
    assert found.cluster_sizes.tolist() == [3, 3, 0]
    assert found.coverage == pytest.approx((8 / 12, 2 / 12, 2 / 12))


def test_tokens_of_further_grids_count_in_sizes_only():
    found = map_of([2, 3, 3, 2], FREE, window_size=2)
    assert found.membership.tolist() == [[0, 0, 2], [2, 0, 1]]
    assert found.windows.tolist() == [[0, 0, 1], [0, 0, 1]]
    assert found.cluster_sizes.tolist() == [5, 3, 3, 0]
    assert found.coverage == (0, 1, 0)


def test_clusters_that_nobody_attends_to_are_not_shown():
    found = map_of([3, 4], FREE, window_size=2, summaries="none")
    assert found.num_clusters == found.num_dead_clusters == 0
    assert found.coverage == (1, 0, 0)
    assert (found.membership == -1).all()
    assert found.windows.max() == 3


@pytest.mark.parametrize("grid", [None, (5, 7), (3, 24), (9, 9)])
@pytest.mark.parametrize("options", [{}, {"window_size": 3}, {"shift_windows": True}], ids=str)
def test_attention_without_summaries_sees_the_window_as_reported(grid, options):
    rows, cols = grid or (1, 41)
    model = Given(None if grid is None else list(grid), None, summaries="none", **options)
    image = torch.randn(1, 4, rows, cols, requires_grad=True)
    (found,) = cluster_maps(model, image.detach())
    out = model(image)[0].sum(1)
    windows = found.windows.flatten()
    for token in (0, 7, len(out) - 1):
        (grad,) = torch.autograd.grad(out[token], image, retain_graph=True)
        seen = grad.abs().sum((0, 1)).flatten() > 0
        assert torch.equal(seen, windows == windows[token])


def test_maps_of_a_model_in_the_order_its_layers_ran():
    options = {"attention": ["paper", "near_far"], "reg_tokens": 2}
    model = timm.create_model("cast_vit_tiny_patch16_224", **TINY, **options).train()
    first, second = cluster_maps(model, torch.randn(3, 32, 48))
    assert (first.layer, second.layer) == ("blocks.0.attn", "blocks.1.attn")
    assert (first.options.attention, second.options.attention) == ("paper", "near_far")
    assert second.grid_size == tuple(second.membership.shape) == (4, 6)
    assert second.coverage == (0, 1, 0)
    assert second.cluster_sizes.tolist() == second.membership.flatten().bincount(minlength=second.num_clusters).tolist()
    assert model.training
    assert isinstance(model(torch.randn(1, 3, 32, 32)), torch.Tensor)  # the hooks are gone


def test_a_context_counts():
    torch.manual_seed(0)
    model = create_context_segmenter("cast_vit_atto_patch4_32", 2, context_size=(32, 32))
    tile, context, window = torch.randn(1, 1, 32, 32), torch.randn(1, 1, 32, 32), torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    alone = cluster_maps(model, tile)[0]
    beside = cluster_maps(model, tile, context=context, window=window)[0]
    assert alone.grid_size == beside.grid_size == (8, 8)
    assert torch.equal(alone.windows, beside.windows)
    assert alone.cluster_sizes.sum() == 64
    assert beside.cluster_sizes.sum() == 128


def test_looking_changes_no_module():
    model = timm.create_model("cast_vit_atto_patch4_32", depth=1).train()
    model.blocks[0].mlp.eval()  # frozen, in a model that trains
    modes, image = [module.training for module in model.modules()], torch.randn(1, 32, 32)
    cluster_maps(model, image)
    assert [module.training for module in model.modules()] == modes


def test_looking_in_several_threads_at_once():
    """Maps of one image came among those of another, or the second thread ended in an error."""
    torch.manual_seed(0)
    model = timm.create_model("cast_vit_tiny_patch8_224", **TINY).eval()
    images = torch.randn(2, 1, 3, 32, 32)
    wanted = [[each.membership for each in cluster_maps(model, image)] for image in images]
    original, met, found = model.blocks[0].forward, threading.Barrier(3, timeout=20), {}

    def together(*args, **kwargs):
        met.wait()
        return original(*args, **kwargs)

    def look(number):
        found[number] = [each.membership for each in cluster_maps(model, images[number])]

    def predict():
        with torch.no_grad():
            found[2] = model(images[1])

    model.blocks[0].forward = together
    threads = [threading.Thread(target=work) for work in (partial(look, 0), partial(look, 1), predict)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    model.blocks[0].forward = original
    for number in range(2):
        assert len(found[number]) == len(wanted[number])
        assert all(torch.equal(one, other) for one, other in zip(found[number], wanted[number], strict=True))
    assert torch.equal(found[2], model(images[1]))


def test_no_clusters_and_too_many_images():
    assert cluster_maps(timm.create_model("vit_tiny_patch16_224", **TINY), torch.randn(3, 32, 32)) == []
    with pytest.raises(ValueError, match="one image"):
        cluster_maps(timm.create_model("cast_vit_tiny_patch16_224", **TINY), torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vit_tiny_patch16_224", ["attn"]),
        ("deit_tiny_distilled_patch16_224", ["attn"]),
        ("vit_small_patch16_18x2_224", ["attns.0.attn", "attns.1.attn"]),
        ("eva02_tiny_patch14_224", ["attn"]),
        ("vit_small_patch16_dinov3", ["attn"]),
    ],
)
def test_a_converted_model_shows_its_clusters(name, layers):
    torch.manual_seed(0)
    model = convert(timm.create_model(name, **TINY), window_size=2, num_clusters=6, blocks=[1]).eval()
    image = torch.randn(1, 3, 32, 48)
    before = model(image)
    found = cluster_maps(model, image)
    assert [each.layer for each in found] == [f"blocks.1.{layer}" for layer in layers]
    assert {(each.grid_size, each.window_size, each.num_clusters) for each in found} == {((4, 6), (2, 2), 6)}
    assert found[0].windows[:2, :4].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    counts = found[0].membership.flatten().bincount(minlength=6)
    assert found[0].cluster_sizes.tolist() == counts.tolist() and counts.sum() == 24
    assert torch.equal(model(image), before)  # the hooks are gone


def test_what_a_converted_layer_sees_is_its_window_where_it_has_no_summaries():
    model = convert(timm.create_model("vit_tiny_patch16_224", **{**TINY, "depth": 1}), summaries="none", anchors=0)
    image = torch.randn(1, 3, 32, 48, requires_grad=True)
    (found,) = cluster_maps(model, image.detach())
    (tokens,) = model.forward_intermediates(image, output_fmt="NLC", intermediates_only=True)
    windows = found.windows.flatten()
    for token in (0, 7, 23):
        (grad,) = torch.autograd.grad(tokens[0, token].sum(), image, retain_graph=True)
        pixels = grad[0].abs().sum(0).unfold(0, 8, 8).unfold(1, 8, 8).sum((2, 3)).flatten()
        assert torch.equal(pixels > 0, windows == windows[token])


def test_a_converted_model_with_full_attention_has_no_clusters():
    model = convert(timm.create_model("vit_tiny_patch16_224", **TINY), attention="full")
    assert cluster_maps(model, torch.randn(3, 32, 32)) == []
