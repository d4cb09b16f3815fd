"""Separable attention: one score a token, one context vector an image.

Mehta and Rastegari, "Separable Self-attention for Mobile Vision Transformers" (MobileViT-v2), arXiv 2206.02680; SMAT
(Gopal and Amer, "Separable Self and Mixed Attention Transformers for Efficient Object Tracking", arXiv 2308.16271)
builds on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from castvision.peers.layer import PeerLayer, placed

if TYPE_CHECKING:
    from torch import Tensor


class SeparableAttention(PeerLayer):
    """A context vector, the mean of the keys under one softmax over tokens, gates the values.

        Y = (sum over n of softmax_n(x_n W_I) (x_n W_K)) * relu(x W_V), then ``proj`` is W_O

    ``ikv`` is W_I (one score a token, whatever the number of heads), W_K and W_V. Prefix tokens are tokens like others;
    rotary codes, which turn pairs of tokens, have no pair to turn.

    Args:
        dim: C.
        num_heads: Only says the width, times ``attn_head_dim``.
        **arguments: See :class:`PeerLayer`.

    Raises:
        ValueError: ``qk_norm``, where there are no queries and keys of heads.
    """

    def __init__(self, dim: int, num_heads: int = 8, **arguments: Any) -> None:
        super().__init__(dim, num_heads, **arguments)
        if arguments.get("qk_norm"):
            raise ValueError("expected qk_norm=False with attention='separable', which has no queries; leave it out")
        self.ikv = nn.Linear(dim, 1 + 2 * self.attn_dim, bias=arguments.get("qkv_bias", False), **placed(arguments))

    def mix(
        self, x: Tensor, rope: Tensor | None, grid: tuple[int, int], token_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`PeerLayer.mix`."""
        score, k, v = self.ikv(x).split([1, self.attn_dim, self.attn_dim], 2)  # B, P + N, …
        hidden: Tensor | None = None
        if token_mask is not None:
            hidden = ~F.pad(token_mask, (self.num_prefix_tokens, 0), value=1.0)[..., None]
            score = score.masked_fill(hidden, torch.finfo(score.dtype).min)
            k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        weights = self.attn_drop(score.softmax(1))
        context = (weights * k).sum(1, keepdim=True)
        out = context * v.relu()
        return out, v
