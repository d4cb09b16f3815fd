"""FLARE against its equations, and where they are known to lead."""

from __future__ import annotations

import pytest
import torch

from castvision.peers.flare import FlareAttention


def make(latents: int, width: int = 8) -> FlareAttention:
    torch.manual_seed(0)
    layer = FlareAttention(width, 2, num_latents=latents, qkv_bias=True, num_prefix_tokens=2, dtype=torch.float64)
    return layer.eval()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("latents", [1, 5])
def test_definition(latents: int, masked: bool) -> None:
    layer = make(latents)
    x = torch.randn(2, 2 + 15, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 15) < 0.6 if masked else None
    images = []
    for b in range(2):
        real = torch.ones(17, dtype=torch.bool)
        if mask is not None:
            real[2:] = mask[b]
        projected = layer.kv(x[b])
        heads = []
        for h in range(2):
            k, v = projected[:, 4 * h : 4 * h + 4], projected[:, 8 + 4 * h : 12 + 4 * h]
            read = [(k[real] @ latent).softmax(0) @ v[real] for latent in layer.latents[h]]
            heads.append(torch.stack([(layer.latents[h] @ each).softmax(0) @ torch.stack(read) for each in k]))
        images.append(layer.proj(torch.cat(heads, 1) * real[:, None]))
    expected, found = torch.stack(images), layer(x, grid_size=[3, 5], token_mask=mask)
    torch.testing.assert_close(found, expected)
    leaves = (x, *layer.parameters())
    weight = torch.randn_like(x)
    ours, theirs = (torch.autograd.grad((out * weight).sum(), leaves) for out in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_through_one_latent_all_tokens_get_the_same() -> None:
    out = make(1)(torch.randn(1, 9, 8, dtype=torch.float64))
    torch.testing.assert_close(out, out[:, :1].expand_as(out))


def test_with_a_latent_at_each_of_few_distinct_keys_values_come_back() -> None:
    layer = make(4)
    with torch.no_grad():  # keys of a head are 50 times the unit vectors, and so are the latents: softmaxes choose
        layer.kv.weight.copy_(torch.cat([torch.eye(8), torch.eye(8)]) * 50)
        layer.kv.bias.zero_()
        layer.latents.copy_(torch.eye(4).expand(2, -1, -1) * 50)
    tokens = torch.eye(4, dtype=torch.float64).repeat(1, 2)[None]
    torch.testing.assert_close(layer(tokens), layer.proj(50 * tokens))
