"""Attention weights of both functions f from logits, forward and backward, for the fused back end.

A bias per key serves both: softmax adds it to the logits, Laplace multiplies by its exponential. So log n_c makes a
summary stand for n_c tokens, and MASKED hides a key exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from castvision.ops._functions import laplace, laplace_derivative
from castvision.ops._problem import Options


def weights(logits: Tensor, bias: Tensor, options: Options) -> Tensor:
    """Weights (…, keys) of complete rows of logits; bias broadcasts against them."""
    if options.activation == "softmax":
        return (logits + bias).softmax(-1, dtype=bias.dtype)
    return laplace(logits.to(bias.dtype)) * key_multiplicity(bias, options.laplace_norm)


def logits_gradient(grad: Tensor, weight: Tensor, logits: Tensor, bias: Tensor, options: Options) -> Tensor:
    """Gradient of the logits from that of the weights."""
    if options.activation == "softmax":
        return torch.ops.aten._softmax_backward_data(grad.to(weight.dtype), weight, -1, weight.dtype)  # type: ignore[no-any-return]
    return grad * laplace_derivative(logits.to(bias.dtype)) * key_multiplicity(bias, options.laplace_norm)


def key_multiplicity(bias: Tensor, normalised: bool) -> Tensor:
    """How many tokens each key stands for, exp(bias), divided by their sum if ``normalised`` (0 / 0 = 0)."""
    count = bias.exp()
    return count / count.sum(-1, keepdim=True).clamp(min=1) if normalised else count
