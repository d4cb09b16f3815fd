"""SMYRF: queries and keys sorted by a hash, attention inside equal chunks of both, several rounds merged.

Daras, Kitaev, Odena and Dimakis, "SMYRF: Efficient Attention using Asymmetric Clustering", arXiv 2010.05315.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from castvision.ops.arithmetic import wide_dtype
from castvision.peers.chunks import EqualChunks
from castvision.peers.core import Core, with_prefix

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.ops.options import Operands


class Smyrf(Core):
    """Attention inside equal chunks of queries and keys that hash alike.

    The asymmetric transformation of the paper's section on asymmetric clustering, with M_Q and M_K the largest norms of
    an image's queries and keys, turns the largest product into the smallest distance:

        F(q) = [q; 0; sqrt(M_Q² + M_K² - |q|²)],  G(k) = [k; sqrt(M_Q² + M_K² - |k|²); 0]
        |F(q) - G(k)|² = 2 (M_Q² + M_K² - q·k)

    Round r projects both on a random direction a_r (E2LSH; its shift and its bucket width keep the order, so they are
    left out), sorts queries by a_r·F(q) and keys by a_r·G(k), and cuts either order into equal chunks, of which the
    i-th of queries attends to the i-th of keys. A row is the mean of the rounds' rows weighted by the sums of their
    exponentials: softmax over r of their log-sum-exp. Prefix keys stand in every chunk.

    Args:
        num_heads: H.
        head_dim: D.
        seed: Of the directions, which are the same for every image.
        rounds: Of hashing.
        chunk_size: Most tokens of a chunk; None: about sqrt(N).
    """

    def __init__(
        self, num_heads: int, head_dim: int, seed: int = 0, *, rounds: int = 4, chunk_size: int | None = None
    ) -> None:
        super().__init__(num_heads, head_dim, seed)
        self.rounds, self.chunk_size = rounds, chunk_size
        generator = torch.Generator("cpu").manual_seed(seed)
        # no buffer: it is no state, and a model built on "meta" would lose it
        self.directions = torch.randn(rounds, head_dim + 2, generator=generator, device="cpu", dtype=torch.float64)

    def attend(self, x: Operands, grid: tuple[int, int], dropout_p: float) -> Tensor:
        """See :meth:`Core.attend`."""
        q, k, v = (each.transpose(1, 2) for each in (x.q, x.k, x.v))  # B, H, N, D
        chunks = EqualChunks(q.shape[2], self.chunk_size, 1.0, q.device)
        rows, masses = [], []
        for hash_q, hash_k in self._hashes(q.detach(), k.detach()):
            if x.token_mask is not None:  # masked tokens come last in either order
                hash_q, hash_k = (h.masked_fill(~x.token_mask[:, None], torch.inf) for h in (hash_q, hash_k))
            order_q, order_k = (h.argsort(stable=True, dim=-1) for h in (hash_q, hash_k))
            keys = with_prefix(chunks.cut(k, order_k), x.prefix_k)  # B, H, C, P + S, D
            values = with_prefix(chunks.cut(v, order_k), x.prefix_v)
            logits = chunks.cut(q * x.scale, order_q) @ keys.transpose(-1, -2)
            seen = chunks.seen(x.token_mask, order_k, keys.shape[3] - chunks.size)
            if seen is not None:
                logits = logits.masked_fill(~seen[..., None, :], -torch.inf)
            wide = logits.to(wide_dtype(logits.dtype))
            masses.append(chunks.join(wide.logsumexp(-1), order_q))
            weights = F.dropout(wide.softmax(-1), dropout_p).to(v.dtype)
            rows.append(chunks.join(weights @ values, order_q))
        shares = torch.stack(masses).softmax(0)[..., None].to(v.dtype)
        return (shares * torch.stack(rows)).sum(0).transpose(1, 2)

    def _hashes(self, q: Tensor, k: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of each round, projections (B, H, N) of queries and of keys (B, H, N, D)."""
        q, k = q.to(wide_dtype(q.dtype)), k.to(wide_dtype(k.dtype))
        square_q, square_k = q.square().sum(-1), k.square().sum(-1)
        radius = square_q.amax(-1, keepdim=True) + square_k.amax(-1, keepdim=True)  # M_Q² + M_K²
        rest_q, rest_k = (radius - square_q).clamp(min=0).sqrt(), (radius - square_k).clamp(min=0).sqrt()
        a = self.directions.to(q)  # R, D + 2
        d = self.head_dim
        along_q, along_k = q @ a[:, :d].T, k @ a[:, :d].T  # B, H, N, R
        along_q, along_k = along_q + rest_q[..., None] * a[:, d + 1], along_k + rest_k[..., None] * a[:, d]
        return list(zip(along_q.unbind(-1), along_k.unbind(-1), strict=True))
