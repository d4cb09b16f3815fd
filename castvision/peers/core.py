"""What peers with the projections of full attention share: who is asked what, and whom prefix tokens attend to.

A peer says how the N patch tokens attend. Prefix tokens (class, registers) attend to all P + N tokens exactly,
whatever the peer; that is written here, once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from castvision.ops.arithmetic import arithmetic_dtype, is_eager
from castvision.ops.options import Operands

if TYPE_CHECKING:
    from torch import Tensor


class Core(nn.Module):
    """How patch tokens attend, given their queries, keys and values; a peer's own options are keyword-only.

    Attributes:
        uses_rope: Whether the result depends on pairs of queries and keys, which rotary codes turn.
        has_parameters: Whether it takes ``device`` and ``dtype`` of parameters.
        no_mask: Why ``token_mask`` is refused; empty: it is honoured.
        no_conversion: Why pretrained weights cannot be given this attention; empty: they can.
    """

    uses_rope = True
    has_parameters = False
    no_mask = ""
    no_conversion = ""

    def __init__(self, num_heads: int, head_dim: int, seed: int = 0) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.seed = num_heads, head_dim, seed

    def attend(self, x: Operands, grid: tuple[int, int], dropout_p: float) -> Tensor:
        """Rows of the patch tokens.

        Args:
            x: Operands; masked tokens hold zeros.
            grid: (rows, cols) of the N tokens.
            dropout_p: Dropout of attention weights.

        Returns:
            (B, N, H, D); of masked tokens anything finite.
        """
        raise NotImplementedError


def attend(
    core: Core,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: tuple[int, int],
    num_prefix_tokens: int,
    token_mask: Tensor | None,
    scale: float,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention of all tokens: the core's of patch tokens, full attention of prefix tokens.

    Args:
        core: The peer.
        q: Queries, (B, P + N, H, D), prefix tokens first.
        k: Keys, likewise.
        v: Values, likewise.
        grid: (rows, cols) of the N tokens.
        num_prefix_tokens: P.
        token_mask: True where a token is real, (B, N) bool, or None; others change nothing and give 0.
        scale: Factor of the logits.
        dropout_p: Dropout of attention weights.

    Returns:
        (B, P + N, H, D) in v's dtype.

    Raises:
        ValueError: A mask that the core cannot honour.
    """
    if token_mask is not None and core.no_mask:
        raise ValueError(f"expected no token_mask with {type(core).__name__}: {core.no_mask}; use images of one size")
    if is_eager() and q.shape[0] == 0 and not core.has_parameters:  # no image to sort or cluster
        return v
    if not q.is_meta and torch.is_autocast_enabled(q.device.type):  # it would round what decides who sees whom
        with torch.autocast(q.device.type, enabled=False):
            return attend(core, q, k, v, grid, num_prefix_tokens, token_mask, scale, dropout_p)
    dtype, working, p = v.dtype, arithmetic_dtype(v), num_prefix_tokens
    q, k, v = q.to(working), k.to(working), v.to(working)
    seen: Tensor | None = None
    if token_mask is not None:
        seen = F.pad(token_mask, (p, 0), value=1.0)  # B, P + N
        hidden = ~seen[:, :, None, None]
        q, k, v = q.masked_fill(hidden, 0.0), k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
    prefix_k, prefix_v = (k[:, :p], v[:, :p]) if p else (None, None)
    x = Operands(q[:, p:], k[:, p:], v[:, p:], prefix_k, prefix_v, token_mask, scale)
    out = core.attend(x, grid, dropout_p)
    if token_mask is not None:
        out = out.masked_fill(~token_mask[:, :, None, None], 0.0)
    if p:
        mask = None if seen is None else seen[:, None, None]
        q, k, v = (each.transpose(1, 2) for each in (q[:, :p], k, v))
        exact = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout_p, scale=scale)
        out = torch.cat([exact.transpose(1, 2), out], 1)
    return out.to(dtype)


def with_prefix(keys: Tensor, prefix: Tensor | None) -> Tensor:
    """The prefix tokens' keys or values (B, P, H, D) before others, (B, H, …, S, D): (B, H, …, P + S, D)."""
    if prefix is None:
        return keys
    first = prefix.transpose(1, 2)
    while first.dim() < keys.dim():
        first = first.unsqueeze(2)
    return torch.cat([first.expand(*keys.shape[:-2], -1, -1), keys], -2)
