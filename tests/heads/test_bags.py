from __future__ import annotations

import math

import pytest
import torch

from castvision.heads.bags import GatedAttentionPool, MeanPool


def test_the_weights_are_the_papers():
    """Equation 9 by hand: width 1, V = 1, U = 2, w = 3, no biases."""
    pool = GatedAttentionPool(1, 1)
    with torch.no_grad():
        for layer, value in ((pool.value, 1.0), (pool.gate, 2.0), (pool.score, 3.0)):
            layer.weight.fill_(value)
            layer.bias.zero_()
    elements = [0.5, -1.0, 2.0]
    scores = [3 * math.tanh(h) / (1 + math.exp(-2 * h)) for h in elements]
    total = sum(map(math.exp, scores))
    weights = pool(torch.tensor(elements)[None, :, None])
    assert weights[0].tolist() == pytest.approx([math.exp(score) / total for score in scores], abs=1e-6)


@pytest.mark.parametrize("kind", [GatedAttentionPool, MeanPool])
def test_order_and_padding_make_no_difference(kind):
    torch.manual_seed(0)
    pool = kind(4, 3)
    bag = torch.randn(1, 5, 4)
    weights = pool(bag)
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(pool(bag[:, order]), weights[:, order])
    padded = torch.cat([bag, torch.full((1, 2, 4), 1e4)], 1)
    mask = torch.tensor([[True] * 5 + [False] * 2])
    torch.testing.assert_close(pool(padded, mask)[:, :5], weights)
    assert pool(padded, mask)[:, 5:].tolist() == [[0, 0]]


def test_the_control_weighs_all_alike():
    assert MeanPool(4)(torch.randn(2, 5, 4)).tolist() == [pytest.approx([0.2] * 5)] * 2


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="width and hidden >= 1"):
        GatedAttentionPool(4, 0)
