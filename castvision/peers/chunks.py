"""Equal chunks of sorted tokens: attention inside each, as SMYRF and SECViT have it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import Tensor


class EqualChunks:
    """N tokens in an order, cut into C chunks of at most S, whose sizes differ by one at most.

    Args:
        num_tokens: N.
        chunk_size: Most tokens of a chunk; None: about ``factor`` times sqrt(N).
        factor: See there.
        device: Of the indices.
    """

    def __init__(self, num_tokens: int, chunk_size: int | None, factor: float, device: torch.device) -> None:
        size = min(num_tokens, chunk_size or max(1, round(factor * math.sqrt(num_tokens))))
        self.number = -(-num_tokens // size)
        self.size = -(-num_tokens // self.number)
        bounds = torch.arange(self.number + 1, device=device) * num_tokens // self.number
        places = bounds[:-1, None] + torch.arange(self.size, device=device)  # C, S
        self.real = places < bounds[1:, None]
        self.places = places.clamp(max=num_tokens - 1)
        at = torch.arange(num_tokens, device=device)
        chunk = torch.searchsorted(bounds, at, right=True) - 1
        self.slots = chunk * self.size + at - bounds[chunk]  # where each place of the order stands

    def cut(self, x: Tensor, order: Tensor) -> Tensor:
        """Tokens (B, H, N, …) in an order (B, H, N) as chunks (B, H, C, S, …)."""
        index = order[..., self.places].flatten(2)  # B, H, C * S
        while index.dim() < x.dim():
            index = index.unsqueeze(-1)
        cut = x.gather(2, index.expand(*index.shape[:3], *x.shape[3:]))
        return cut.view(*cut.shape[:2], self.number, self.size, *cut.shape[3:])

    def join(self, chunks: Tensor, order: Tensor) -> Tensor:
        """The reverse of ``cut``: (B, H, C, S, …) as (B, H, N, …)."""
        index = self.slots[order.argsort(-1)]
        while index.dim() < chunks.dim() - 1:
            index = index.unsqueeze(-1)
        rows = chunks.flatten(2, 3)
        return rows.gather(2, index.expand(*index.shape[:3], *rows.shape[3:]))

    def seen(self, token_mask: Tensor | None, order: Tensor, num_prefix_tokens: int) -> Tensor | None:
        """Whether each key of a chunk may be attended to, (B or 1, H or 1, C, P + S) bool; None: all may."""
        if token_mask is None:
            if bool(self.number * self.size == self.slots.shape[0]):
                return None
            seen = self.real[None, None]
        else:
            real = token_mask[:, None].expand(-1, order.shape[1], -1)
            seen = self.real & self.cut(real, order)
        seen = F.pad(seen, (num_prefix_tokens, 0), value=True)
        return seen | ~seen.any(-1, keepdim=True)  # of masked tokens alone: finite numbers that nobody looks at
