"""FLARE: tokens write to M learned latents and read them back, by two calls of fused attention.

Puri, Joglekar, Bandreddi et al., "FLARE: Fast Low-rank Attention Routing Engine", arXiv 2508.12594.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional as F

from castvision.peers.layer import PeerLayer, placed

if TYPE_CHECKING:
    from torch import Tensor


class FlareAttention(PeerLayer):
    """Low-rank attention through latents of its own for each head.

    With latent queries L (M, D) of each head, keys k and values v of all tokens,

        Z = softmax(L kᵀ) v,  Y = softmax(k Lᵀ) Z

    without a factor of the logits, which the paper sets to 1 as well. Its keys and values come from residual MLPs; here
    from one linear layer ``kv``, as the block's own MLP follows. Prefix tokens are tokens like others; rotary codes,
    which turn pairs of tokens, have no pair to turn.

    Args:
        dim: C.
        num_heads: H.
        num_latents: M.
        **arguments: See :class:`PeerLayer`; ``qk_norm`` normalises keys.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, num_latents: int = 64, **arguments: Any) -> None:
        self.num_latents = num_latents
        super().__init__(dim, num_heads, **arguments)
        self.q_norm = nn.Identity()
        self.kv = nn.Linear(dim, 2 * self.attn_dim, bias=arguments.get("qkv_bias", False), **placed(arguments))
        self.latents = nn.Parameter(torch.empty(num_heads, num_latents, self.head_dim, **placed(arguments)))
        nn.init.normal_(self.latents, std=self.head_dim**-0.5)

    def mix(
        self, x: Tensor, rope: Tensor | None, grid: tuple[int, int], token_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`PeerLayer.mix`."""
        k, v = self.kv(x).view(*x.shape[:2], 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)  # B, H, P + N, D
        k = self.k_norm(k).to(v.dtype)
        seen: Tensor | None = None
        if token_mask is not None:
            seen = F.pad(token_mask, (self.num_prefix_tokens, 0), value=1.0)[:, None, None]
            hidden = ~seen.transpose(2, 3)
            k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
            seen = seen | ~seen.any(-1, keepdim=True)  # an image without a real token: finite numbers
        latents = self.latents.to(v.dtype).expand(x.shape[0], -1, -1, -1)
        drop = self.attn_drop.p if self.training else 0.0
        read = F.scaled_dot_product_attention(latents, k, v, attn_mask=seen, dropout_p=drop, scale=1.0)
        out = F.scaled_dot_product_attention(k, latents, read, dropout_p=drop, scale=1.0)
        if seen is not None:
            out = out.masked_fill(hidden, 0.0)
        return out.transpose(1, 2).flatten(2), v.transpose(1, 2).flatten(2)
