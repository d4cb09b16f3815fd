"""The peers as layers with timm's signature, beside :class:`castvision.layers.CastAttention`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.layers import apply_rot_embed_cat, register_notrace_module
from torch import Tensor, nn

from castvision.peers.core import Core, attend


class PeerLayer(nn.Module):
    """What every peer's layer has: the last projection, the local branch, the interface.

    Args:
        dim: C.
        num_heads: H.
        attn_head_dim: D. Default: C // H.
        dim_out: Width of the output. Default: C.
        qkv_bias: Bias of the first projection (and of the gate).
        qk_norm: Normalise queries and keys.
        scale_norm: Normalise the attention output before ``proj``.
        proj_bias: Bias of ``proj``.
        gated: Sigmoid gate on the attention output.
        attn_drop: Dropout of attention weights.
        proj_drop: Dropout of the output.
        norm_layer: For ``qk_norm`` and ``scale_norm``.
        num_prefix_tokens: P.
        local_branch: Add a depthwise 3x3 convolution of the values on the token grid, zero at the start.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        ValueError: A width that the heads do not divide.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        attn_head_dim: int | None = None,
        dim_out: int | None = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        gated: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: Callable[..., nn.Module] | None = None,
        num_prefix_tokens: int = 0,
        local_branch: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or (attn_head_dim is None and dim % num_heads):
            raise ValueError(f"expected dim divisible by num_heads, got {dim=} {num_heads=}; or give attn_head_dim")
        norm, dd = norm_layer or nn.LayerNorm, placed({"device": device, "dtype": dtype})
        self.num_heads, self.head_dim = num_heads, attn_head_dim or dim // num_heads
        self.attn_dim = num_heads * self.head_dim
        self.scale = self.head_dim**-0.5
        self.num_prefix_tokens = num_prefix_tokens
        self.q_norm = norm(self.head_dim, **dd) if qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim, **dd) if qk_norm else nn.Identity()
        self.attn_drop = nn.Dropout(attn_drop)
        self.local_conv: nn.Conv2d | None = None
        if local_branch:
            self.local_conv = nn.Conv2d(self.attn_dim, self.attn_dim, 3, padding=1, groups=self.attn_dim, **dd)
        self.norm = norm(self.attn_dim, **dd) if scale_norm else nn.Identity()
        self.gate = nn.Linear(dim, self.attn_dim, bias=qkv_bias, **dd) if gated else None
        self.proj = nn.Linear(self.attn_dim, dim_out or dim, bias=proj_bias, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        self.init_weights()

    def init_weights(self) -> None:
        """The local branch starts at zero."""
        for parameter in () if self.local_conv is None else self.local_conv.parameters():
            nn.init.zeros_(parameter)

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rope: Tensor | None = None,
        grid_size: list[int] | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend; arguments as :class:`castvision.layers.CastAttention`'s.

        Raises:
            ValueError: A mask of pairs, a mask of tokens that this peer cannot honour, or tokens of several grids.
        """
        if attn_mask is not None or is_causal:
            raise ValueError("expected no attn_mask and is_causal=False: peers have no pairwise mask; use token_mask")
        if grid_size is not None and len(grid_size) != 2:
            raise ValueError(
                f"expected the tokens of one grid, got {len(grid_size) // 2} of them; use attention='near_far' for "
                "tiles with context"
            )
        rows, cols = (1, x.shape[1] - self.num_prefix_tokens) if grid_size is None else grid_size
        out, values = self.mix(x, rope, (rows, cols), token_mask)
        if self.local_conv is not None:
            out = out + self._local(values[:, self.num_prefix_tokens :], rows, cols, token_mask)
        out = self.norm(out)
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected

    def mix(
        self, x: Tensor, rope: Tensor | None, grid: tuple[int, int], token_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attention before the last projection and the values, both (B, P + N, H * D)."""
        raise NotImplementedError

    def _local(self, values: Tensor, rows: int, cols: int, token_mask: Tensor | None) -> Tensor:
        """The convolution of the patches' values (B, N, C), zero for the prefix."""
        if token_mask is not None:
            values = values.masked_fill(~token_mask[..., None], 0.0)
        image = values.transpose(1, 2).reshape(-1, self.attn_dim, rows, cols)
        conv: Any = self.local_conv
        return nn.functional.pad(conv(image).flatten(2).transpose(1, 2), (0, 0, self.num_prefix_tokens, 0))


def placed(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Device and dtype of parameters, out of a layer's arguments."""
    return {name: arguments.get(name) for name in ("device", "dtype")}


@register_notrace_module  # numbers of chunks and tiles follow the grid, which FX cannot
class PeerAttention(PeerLayer):
    """A peer that has the projections of full attention: state-dict keys are timm's.

    Args:
        dim: C.
        num_heads: H.
        core: Makes the peer's core of ``num_heads``, ``head_dim``, ``seed``.
        seed: Of what a peer draws; give each layer its own.
        core_arguments: Further arguments of ``core``.
        **arguments: See :class:`PeerLayer`.
    """

    core: Core

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        core: Callable[..., Core],
        seed: int = 0,
        core_arguments: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(dim, num_heads, **arguments)
        self.qkv = nn.Linear(dim, 3 * self.attn_dim, bias=arguments.get("qkv_bias", False), **placed(arguments))
        self.core = core(self.num_heads, self.head_dim, seed, **(core_arguments or {}))

    def mix(
        self, x: Tensor, rope: Tensor | None, grid: tuple[int, int], token_mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`PeerLayer.mix`."""
        p = self.num_prefix_tokens
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, self.head_dim).unbind(2)
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # B, P + N, H, D
        if rope is not None and self.core.uses_rope:
            codes = (rope if rope.dim() == 4 else rope[None, None]).transpose(1, 2)  # B or 1, N, 1, 2D
            q, k = (torch.cat([e[:, :p], apply_rot_embed_cat(e[:, p:], codes).to(v.dtype)], 1) for e in (q, k))
        drop = self.attn_drop.p if self.training else 0.0
        out = attend(self.core, q, k, v, grid, p, token_mask, self.scale, drop)
        return out.flatten(2), v.flatten(2)
