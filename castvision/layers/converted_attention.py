"""Clustered attention in timm's attention modules: their parameters and buffers, another ``forward``.

A module changes its class (``attn.__class__ = CONVERTED[type(attn)]``) and back, so it stays the same module with the
same parameters, hooks and place in the model. Blocks of timm hand ``attn_mask`` on to their attention as it comes; here
it carries the token grid, which no other argument could.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat, register_notrace_module
from timm.models.eva import EvaAttention
from torch.nn import functional as F

from castvision.ops import cast_attention
from castvision.ops.arithmetic import is_exporting
from castvision.peers.core import attend

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.ops import AttentionOptions
    from castvision.peers.core import Core


class TokenGrid(NamedTuple):
    """Where the tokens that attention gets lie.

    Attributes:
        rows: Of the grid.
        cols: Of the grid; N = rows * cols.
        num_prefix_tokens: P, before the grid's.
    """

    rows: int
    cols: int
    num_prefix_tokens: int


class _Converted:
    """What the three classes share; attributes beside timm's are set by :func:`castvision.models.convert`.

    Attributes:
        options: Which clustered attention.
        core: Which peer's attention; without either it keeps full attention.
        rope_in_routing: Form clusters on keys after rotary positions rather than before.
        seed: Of assignment="random".
    """

    options: AttentionOptions | None
    core: Core | None
    rope_in_routing: bool
    seed: int

    def _instead(self: Any, x: Tensor, rope: Tensor | None, carried: Any, is_causal: bool, return_routing: bool) -> Any:
        """Attention of tokens (B, P + N, C); rope: (N, 2D), or (H, N, 2D) with codes of each head, or None.

        Returns the output, or the pair of it and the clusters.
        """
        options: AttentionOptions | None = self.options
        grid = _checked(carried, is_causal, options)
        p = grid.num_prefix_tokens
        parts = self._projected(x)
        q, k, v = (part.unflatten(-1, (part.shape[-1] // self.head_dim, -1)) for part in parts)  # B, P + N, H, D
        q, k = self.q_norm(q), self.k_norm(k)
        k_route: Tensor | None = None
        if rope is not None:
            codes = rope[:, None] if rope.dim() == 2 else rope.transpose(0, 1)  # N, 1 or H, 2D
            k_route = None if self.rope_in_routing else k[:, p:].to(v.dtype)
            half = getattr(self, "rotate_half", False)
            q = torch.cat([q[:, :p], apply_rot_embed_cat(q[:, p:], codes, half=half)], 1)
            k = torch.cat([k[:, :p], apply_rot_embed_cat(k[:, p:], codes, half=half)], 1)
        groups = getattr(self, "num_kv_groups", 1)
        if groups > 1:  # several queries' heads share a key's
            k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
            k_route = None if k_route is None else k_route.repeat_interleave(groups, 2)
        drop = self.attn_drop.p if self.training else 0.0
        q, k, clusters = q.to(v.dtype), k.to(v.dtype), None
        if options is None:
            out = attend(self.core, q, k, v, (grid.rows, grid.cols), p, None, self.scale, drop)
        else:
            out, clusters = cast_attention(
                q, k, v, options, [grid.rows, grid.cols], p, k_route=k_route, scale=self.scale, dropout_p=drop,
                seed=self.seed,
            )  # fmt: skip
        out = self.norm(out.flatten(2))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        out = self.proj_drop(self.proj(out))
        return (out, clusters) if return_routing else out

    def _projected(self: Any, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values (B, P + N, heads * D)."""
        if self.qkv is None:
            return self.q_proj(x), self.k_proj(x), self.v_proj(x)
        bias = getattr(self, "q_bias", None)
        if bias is None:
            fused = self.qkv(x)
        else:  # EVA's keys have no bias
            bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
            separate = self.qkv_bias_separate
            fused = self.qkv(x) + bias if separate else F.linear(x, self.qkv.weight, bias)
        chunks: tuple[Tensor, ...] = fused.chunk(3, -1)
        return chunks


def _checked(grid: Any, is_causal: bool, options: AttentionOptions | None) -> TokenGrid:
    if not isinstance(grid, TokenGrid) or is_causal:
        got = "is_causal=True" if is_causal else "None" if grid is None else "a mask"
        raise ValueError(
            f"expected converted attention to be given the token grid by its model, as attn_mask, got {got}; call the "
            "model, not its blocks, and without a mask"
        )
    if options is None or is_exporting():  # it may not branch on sizes
        return grid
    size, clusters = options.window_size, options.num_clusters
    shape = f"{grid.rows} x {grid.cols} = {grid.rows * grid.cols} tokens"
    if size is not None and size > max(grid.rows, grid.cols):
        raise ValueError(
            f"expected an image of at least a window, got {shape} with window_size={size}; give larger images, or "
            "leave window_size out, so that it follows the image"
        )
    if clusters is not None and clusters > grid.rows * grid.cols:
        raise ValueError(
            f"expected num_clusters <= N, got {shape} with num_clusters={clusters}; give larger images, or leave "
            "num_clusters out, so that it follows the image"
        )
    return grid


@register_notrace_module  # FX cannot follow the number of windows and clusters
class ConvertedAttention(_Converted, Attention):  # type: ignore[misc]
    """timm's ``Attention``, clustered."""

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False, return_routing: bool = False) -> Any:
        """Tokens (B, P + N, C) to the same; ``attn_mask`` is a :class:`TokenGrid`; with its clusters if asked for."""
        if self.options is None and self.core is None:
            full: Tensor = Attention.forward(self, x)
            return full
        return self._instead(x, None, attn_mask, is_causal, return_routing)


@register_notrace_module  # FX cannot follow the number of windows and clusters
class ConvertedEvaAttention(_Converted, EvaAttention):  # type: ignore[misc]
    """timm's ``EvaAttention``, clustered."""

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Any = None,
        is_causal: bool = False,
        return_routing: bool = False,
    ) -> Any:
        """As `ConvertedAttention`, with rotary codes."""
        if self.options is None and self.core is None:
            full: Tensor = EvaAttention.forward(self, x, rope)
            return full
        return self._instead(x, rope, attn_mask, is_causal, return_routing)


@register_notrace_module  # FX cannot follow the number of windows and clusters
class ConvertedAttentionRope(_Converted, AttentionRope):  # type: ignore[misc]
    """timm's ``AttentionRope``, clustered."""

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Any = None,
        is_causal: bool = False,
        return_routing: bool = False,
    ) -> Any:
        """As `ConvertedAttention`, with rotary codes."""
        if self.options is None and self.core is None:
            full: Tensor = AttentionRope.forward(self, x, rope)
            return full
        return self._instead(x, rope, attn_mask, is_causal, return_routing)


CONVERTED: dict[type, type] = {
    Attention: ConvertedAttention,
    EvaAttention: ConvertedEvaAttention,
    AttentionRope: ConvertedAttentionRope,
}
"""timm's attention classes, and what each becomes."""
