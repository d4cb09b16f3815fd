"""Separable attention against its equation."""

from __future__ import annotations

import pytest
import torch

from castvision.peers.separable import SeparableAttention


@pytest.mark.parametrize("masked", [False, True])
def test_definition(masked: bool) -> None:
    torch.manual_seed(0)
    layer = SeparableAttention(8, 2, qkv_bias=True, num_prefix_tokens=2, dtype=torch.float64).eval()
    x = torch.randn(2, 2 + 15, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 15) < 0.6 if masked else None
    images = []
    for b in range(2):
        real = torch.ones(17, dtype=torch.bool)
        if mask is not None:
            real[2:] = mask[b]
        i, k, v = (
            x[b] @ w.T + c
            for w, c in zip(layer.ikv.weight.split([1, 8, 8]), layer.ikv.bias.split([1, 8, 8]), strict=True)
        )
        context = sum(share * key for share, key in zip(i[real, 0].softmax(0), k[real], strict=True))
        images.append(layer.proj(context * v.relu() * real[:, None]))
    expected, found = torch.stack(images), layer(x, grid_size=[3, 5], token_mask=mask)
    torch.testing.assert_close(found, expected)
    leaves, weight = (x, *layer.parameters()), torch.randn_like(x)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), leaves) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_one_token_alone_gates_its_own_value() -> None:
    layer = SeparableAttention(8, 2).eval()
    x = torch.randn(1, 1, 8)
    _, k, v = layer.ikv(x).split([1, 8, 8], 2)
    torch.testing.assert_close(layer(x), layer.proj(k * v.relu()))


def test_norms_of_queries_that_are_not_there_are_refused() -> None:
    with pytest.raises(ValueError, match="qk_norm"):
        SeparableAttention(8, 2, qk_norm=True)
