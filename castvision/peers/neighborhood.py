"""Neighbourhood attention: every token attends to the k x k tokens around it.

Hassani, Walton, Li, Li and Shi, "Neighborhood Attention Transformer", arXiv 2204.07143.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from castvision.peers.core import Core, with_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.ops.options import Operands

_TILE = 8


class Neighborhood(Core):
    """Exact attention to a square of k x k tokens, which at the border moves inwards and keeps its size.

    On an axis of n tokens, token i attends to those from clamp(i - (k - 1) / 2, 0, n - k), k of them, and to all where
    n <= k. Computed by tiles of 8 x 8 queries, each with all keys that any of them attends to. The paper's bias by
    relative position is left out (rotary codes work); prefix keys are seen by all.

    Args:
        num_heads: H.
        head_dim: D.
        seed: Not used.
        kernel_size: k, odd.

    Raises:
        ValueError: An even ``kernel_size``.
    """

    def __init__(self, num_heads: int, head_dim: int, seed: int = 0, *, kernel_size: int = 13) -> None:
        super().__init__(num_heads, head_dim, seed)
        if kernel_size % 2 == 0:
            raise ValueError(f"expected an odd kernel_size, so that a token is in the middle, got {kernel_size=}")
        self.kernel_size = kernel_size

    def attend(self, x: Operands, grid: tuple[int, int], dropout_p: float) -> Tensor:
        """See :meth:`Core.attend`."""
        down, across = (_Axis(side, self.kernel_size, x.q.device) for side in grid)
        tiles, prefix = (len(down.keys), len(across.keys)), 0 if x.prefix_k is None else x.prefix_k.shape[1]
        batch, _, heads, _ = x.q.shape

        def cut(tokens: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
            """(B, N, …) as (B, tiles, rows * cols of a tile, …)."""
            index = rows[:, None, :, None] * grid[1] + cols[:, None, :]  # tiles down, across, rows, cols
            return tokens[:, index.flatten(2).flatten(0, 1)]

        q = cut(x.q, down.queries, across.queries).flatten(0, 1).transpose(1, 2)  # B * tiles, H, T, D
        keys, values = (cut(each, down.keys, across.keys).permute(0, 3, 1, 2, 4) for each in (x.k, x.v))
        keys, values = with_prefix(keys, x.prefix_k), with_prefix(values, x.prefix_v)  # B, H, tiles, P + S, D
        keys, values = (each.transpose(1, 2).flatten(0, 1) for each in (keys, values))
        seen = down.seen[:, None, :, None, :, None] & across.seen[:, None, :, None, :]  # tiles, queries, keys: two each
        seen = seen.flatten(4).flatten(2, 3).flatten(0, 1)[None]  # 1, tiles, T, S
        if x.token_mask is not None:
            seen = seen & cut(x.token_mask, down.keys, across.keys)[:, :, None]
        seen = F.pad(seen, (prefix, 0), value=True)
        seen = seen | ~seen.any(-1, keepdim=True)  # of masked tokens alone: finite numbers that nobody looks at
        seen = seen.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
        rows = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, dropout_p=dropout_p, scale=x.scale)
        rows = rows.transpose(1, 2).reshape(batch, *tiles, down.tile, across.tile, heads, self.head_dim)
        whole = rows.transpose(2, 3).flatten(1, 2).flatten(2, 3)  # B, rows, cols with those past the border, H, D
        return whole[:, : grid[0], : grid[1]].flatten(1, 2)


class _Axis:
    """One axis of the grid: which queries stand in a tile, which keys it needs, who sees whom."""

    def __init__(self, side: int, kernel_size: int, device: torch.device) -> None:
        k = min(kernel_size, side)
        self.tile = min(_TILE, side)
        span = min(self.tile + k - 1, side)
        first = torch.arange(0, side, self.tile, device=device)
        self.queries = (first[:, None] + torch.arange(self.tile, device=device)).clamp(max=side - 1)  # past it: again
        start = (first - k // 2).clamp(0, side - span)
        self.keys = start[:, None] + torch.arange(span, device=device)  # tiles, S
        begin = (self.queries - k // 2).clamp(0, side - k)[:, :, None]
        self.seen = (self.keys[:, None] >= begin) & (self.keys[:, None] < begin + k)  # tiles, T, S
