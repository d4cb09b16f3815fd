"""captum: attributions to pixels and to layers of our models."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

import castvision  # noqa: F401  # registers the models

attr = pytest.importorskip("captum.attr")
pytestmark = pytest.mark.slow
NAME = "cast_vit_tiny_patch16_224"


def make(**options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(NAME, depth=4, num_classes=5, global_pool="avg", **options).eval()


def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_integrated_gradients_add_up_where_routing_stays_fixed():
    model, x = make(assignment="window"), images()
    parts, gap = attr.IntegratedGradients(model).attribute(x, target=3, n_steps=64, return_convergence_delta=True)
    assert parts.shape == x.shape
    difference = (model(x) - model(torch.zeros_like(x)))[:, 3]
    torch.testing.assert_close(parts.sum((1, 2, 3)), difference.detach().double(), rtol=0, atol=1e-3, check_dtype=False)
    assert gap.abs().max() < 1e-3


def test_integrated_gradients_run_through_routing():
    model, x = make(), images()
    parts = attr.IntegratedGradients(model).attribute(x, target=3, n_steps=8)
    assert torch.isfinite(parts).all() and (parts.abs().sum((1, 2, 3)) > 0).all()


def test_layer_grad_cam_at_the_patch_embedding():
    model, x = make(), images()
    maps = attr.LayerGradCam(model, model.patch_embed.proj).attribute(x, target=1)
    assert maps.shape == (2, 1, 4, 6)
    kept = []
    handle = model.patch_embed.proj.register_forward_hook(lambda module, args, output: kept.append(output))
    scores = model(x)[:, 1]
    handle.remove()
    (slope,) = torch.autograd.grad(scores.sum(), kept[0])
    torch.testing.assert_close(maps, (slope.mean((2, 3), keepdim=True) * kept[0]).sum(1, keepdim=True))


@pytest.mark.parametrize("place", [0, -1])
def test_tokens_of_a_block_fold_into_a_map(place):
    model, x = make(), images()
    parts = attr.LayerGradientXActivation(model, model.blocks[place]).attribute(x, target=1)
    assert parts.shape == (2, 1 + 24, 192)
    maps = parts.sum(-1)[:, model.num_prefix_tokens :].reshape(2, 4, 6)
    assert torch.isfinite(maps).all() and maps.std() > 0
