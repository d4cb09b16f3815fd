"""Full attention behind the interface of CastAttention: the baseline that CAST approximates."""

import torch
from timm.layers import Attention, apply_rot_embed_cat
from torch import Tensor
from torch.nn import functional as F


class FullAttention(Attention):  # type: ignore[misc]
    """timm's ``Attention`` with rotary positions and a token mask.

    Args:
        dim: C.
        num_heads: H.
        num_prefix_tokens: Tokens before the grid's, which have no position.
        **timm_arguments: As timm's ``Attention``; unknown ones raise TypeError there.
    """

    def __init__(self, dim: int, num_heads: int = 8, num_prefix_tokens: int = 0, **timm_arguments: object) -> None:
        super().__init__(dim, num_heads=num_heads, **timm_arguments)
        self.num_prefix_tokens = num_prefix_tokens

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        grid_size: list[int] | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend. x: (B, P + N, C); rope: (N, 2D) or (B, 1, N, 2D); token_mask: (B, N) bool. Returns (B, P + N, C)."""
        batch, length, _ = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            p = self.num_prefix_tokens
            q = torch.cat([q[:, :, :p], apply_rot_embed_cat(q[:, :, p:], rope)], 2)
            k = torch.cat([k[:, :, :p], apply_rot_embed_cat(k[:, :, p:], rope)], 2)
        seen: Tensor | None = None
        if token_mask is not None:
            seen = F.pad(token_mask, (self.num_prefix_tokens, 0), value=1.0)[:, None, None]
        drop = self.attn_drop.p if self.training else 0.0
        x = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=seen, dropout_p=drop)
        x = self.norm(x.transpose(1, 2).reshape(batch, length, self.attn_dim))
        if gate is not None:
            x = x * gate
        out: Tensor = self.proj_drop(self.proj(x))
        return out
