"""lightly (torchgeo brings it): its masked pre-training wrapper around our backbones."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor

import castvision  # noqa: F401  # registers the models

modules = pytest.importorskip("lightly.models.modules")
pytestmark = pytest.mark.slow
NAME = "cast_vit_tiny_patch16_224"


def make(**options):
    torch.manual_seed(0)
    return modules.MaskedVisionTransformerTIMM(vit=timm.create_model(NAME, num_classes=0, depth=4), **options)


def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_all_tokens_give_our_own_features():
    wrapper = make(weight_initialization="skip", pos_embed_initialization="skip").eval()
    torch.testing.assert_close(wrapper.encode(images()), wrapper.vit.forward_features(images()))


@torch.no_grad()
def test_dropped_tokens_do_not_matter():
    wrapper, x = make().eval(), images()
    keep = torch.tensor([[0, 1, 5, 8], [0, 2, 3, 16]])
    kept = wrapper.encode(x, idx_keep=keep)
    assert kept.shape == (2, 4, 192)
    x[0, :, 32:] = 7.0  # rows 2 and 3 of the grid: tokens 9 to 16, none of which the first image keeps
    torch.testing.assert_close(wrapper.encode(x, idx_keep=keep)[0], kept[0])


@torch.no_grad()
def test_masked_tokens_do_not_matter():
    wrapper, x = make().eval(), images()
    mask = torch.tensor([[9, 10, 11, 12], [13, 14, 15, 16]])
    before = wrapper.encode(x, idx_mask=mask)
    x[0, :, 32:48] = 7.0
    torch.testing.assert_close(wrapper.encode(x, idx_mask=mask), before)


def test_trains_with_checkpointing():
    wrapper = make()
    wrapper.set_grad_checkpointing()
    wrapper(images()).square().mean().backward()
    assert all(value.grad is not None for value in wrapper.vit.blocks.parameters())
