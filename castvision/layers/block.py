"""The pre-norm block of a ViT around CAST attention, full attention or none; state-dict keys are timm's."""

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath, LayerNorm, LayerScale, Mlp
from torch import Tensor, nn

from castvision.layers.cast_attention import CastAttention
from castvision.layers.full_attention import FullAttention
from castvision.ops import check_choice
from castvision.peers import PEERS, make_peer

ATTN_LAYERS: dict[str, type[nn.Module] | None] = {"cast": CastAttention, "full": FullAttention, "none": None}
"""Attention layers by name, called as ``layer(dim, num_heads=…, …)``; only "cast" gets ``attn_kwargs``."""


class CastBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)); arguments as timm's ``Block``.

    Args:
        dim: C.
        num_heads: H.
        mlp_ratio: Hidden width of the MLP over C.
        qkv_bias: Bias of ``qkv``.
        qk_norm: Normalise queries and keys.
        scale_attn_norm: Normalise the attention output before ``proj``.
        scale_mlp_norm: Normalise inside the MLP.
        proj_bias: Bias of ``proj`` and of the MLP.
        proj_drop: Dropout of both outputs.
        attn_drop: Dropout of attention weights.
        init_values: Start of layer scale, or None for none.
        drop_path: Stochastic depth.
        act_layer: Activation of the MLP.
        norm_layer: Normalisation.
        mlp_layer: The MLP.
        attn_layer: "cast", "full" (a baseline) or "none": the attention and its projections gone, the MLP stays.
        depth: Index of the block, from 0.
        num_prefix_tokens: P.
        attn_kwargs: Further arguments of :class:`CastAttention`; or, where ``attention`` is a word of
            :data:`castvision.peers.PEERS`, that peer's ``options`` and whether it has a ``local_branch``.
        device: Of the parameters.
        dtype: Of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_attn_norm: bool = False,
        scale_mlp_norm: bool = False,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        init_values: float | None = None,
        drop_path: float = 0.0,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        mlp_layer: Callable[..., nn.Module] = Mlp,
        attn_layer: str = "cast",
        depth: int = 0,
        num_prefix_tokens: int = 0,
        attn_kwargs: dict[str, Any] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_choice("attn_layer", attn_layer, tuple(ATTN_LAYERS))
        layer = ATTN_LAYERS[attn_layer]
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.attn: nn.Module | None = None
        if layer is not None:
            shared: dict[str, Any] = dict(
                num_heads=num_heads, qkv_bias=qkv_bias, qk_norm=qk_norm, scale_norm=scale_attn_norm,
                proj_bias=proj_bias, attn_drop=attn_drop, proj_drop=proj_drop, norm_layer=norm_layer,
                num_prefix_tokens=num_prefix_tokens, **dd,
            )  # fmt: skip
            self.norm1 = norm_layer(dim, **dd)
            if layer is CastAttention:
                shared |= {"seed": depth, **(attn_kwargs or {})}
            is_peer = shared.get("attention") in PEERS
            self.attn = make_peer(dim=dim, **shared) if is_peer else layer(dim, **shared)
            self.ls1 = LayerScale(dim, init_values=init_values, **dd) if init_values else nn.Identity()
            self.drop_path1 = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        else:
            self.norm1 = self.ls1 = self.drop_path1 = nn.Identity()
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = mlp_layer(
            in_features=dim, hidden_features=int(dim * mlp_ratio), act_layer=act_layer,
            norm_layer=norm_layer if scale_mlp_norm else None, bias=proj_bias, drop=proj_drop, **dd,
        )  # fmt: skip
        self.ls2 = LayerScale(dim, init_values=init_values, **dd) if init_values else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        grid_size: list[int] | None = None,
        token_mask: Tensor | None = None,
    ) -> Tensor:
        """Arguments but x as :class:`CastAttention`'s; x: (B, P + N, C). Returns (B, P + N, C)."""
        if self.attn is not None:
            mixed = self.attn(self.norm1(x), rope=rope, grid_size=grid_size, token_mask=token_mask)
            x = x + self.drop_path1(self.ls1(mixed))
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return out
