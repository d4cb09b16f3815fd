"""SECViT: tokens sorted by their likeness to the mean key, attention inside equal chunks.

Fan, Huang, Chen and He, "Semantic Equitable Clustering: A Simple and Effective Strategy for Clustering Vision
Tokens", arXiv 2405.13337.
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


class SecVit(Core):
    """Attention inside equal clusters of similar keys, found in one pass for each head.

    With the centre c = mean of an image's keys, the likeness of token n is cos(k_n, c). Tokens are sorted by it and cut
    into equal runs; queries, keys and values of a run attend to each other:

        order = argsort(cos(k, c)),  Y_i = softmax(scale Q_i K_iᵀ) V_i  for the i-th run

    The paper's convolution of the values beside it is ``local_branch``; its pyramid of stages is left out. Prefix keys
    stand in every run.

    Args:
        num_heads: H.
        head_dim: D.
        seed: Not used.
        chunk_size: Most tokens of a cluster; None: about 4 sqrt(N).
    """

    def __init__(self, num_heads: int, head_dim: int, seed: int = 0, *, chunk_size: int | None = None) -> None:
        super().__init__(num_heads, head_dim, seed)
        self.chunk_size = chunk_size

    def attend(self, x: Operands, grid: tuple[int, int], dropout_p: float) -> Tensor:
        """See :meth:`Core.attend`."""
        q, k, v = (each.transpose(1, 2) for each in (x.q, x.k, x.v))  # B, H, N, D
        chunks = EqualChunks(q.shape[2], self.chunk_size, 4.0, q.device)
        wide = k.detach().to(wide_dtype(k.dtype))
        center = wide.sum(2, keepdim=True)  # a cosine does not see the number of tokens, and masked ones hold zeros
        likeness = F.cosine_similarity(wide, center, dim=-1)  # B, H, N
        if x.token_mask is not None:
            likeness = likeness.masked_fill(~x.token_mask[:, None], torch.inf)
        order = likeness.argsort(stable=True, dim=-1)
        keys = with_prefix(chunks.cut(k, order), x.prefix_k)
        values = with_prefix(chunks.cut(v, order), x.prefix_v)
        seen = chunks.seen(x.token_mask, order, keys.shape[3] - chunks.size)
        if seen is not None:  # B * H, C, 1, P + S
            seen = seen.expand(*q.shape[:2], -1, -1).flatten(0, 1)[:, :, None]
        queries, keys, values = (each.flatten(0, 1) for each in (chunks.cut(q, order), keys, values))
        rows = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, dropout_p=dropout_p, scale=x.scale)
        return chunks.join(rows.view(*q.shape[:2], *rows.shape[1:]), order).transpose(1, 2)
