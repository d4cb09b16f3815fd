"""Step 1 of CAST, streamed: how much each token belongs to each cluster, one clustering for all heads.

    affinity = sigmoid(phi) f_M(sum_h q_h S_h') + (1 - sigmoid(phi)) f_M(sum_h k_h S_h')          (B, N, M)

The sum over heads is one matrix product of width C. f_M is the softmax over clusters, unscaled, or the Laplace function
of the argument times C^-0.5 (unscaled, nearly all its values would be exactly 0 or 1). The *linear* score leaves f out:
``[sigmoid(phi) q + (1 - sigmoid(phi)) k] S'``; it is another definition, cheaper by half.
Scores only choose indices: they are computed in fp32 (float64 stays float64), without a gradient, by chunks of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from castvision.ops._functions import MASKED, laplace

WORKSPACE = 1 << 24
"""Largest number of scores held at once, in elements (64 MiB of fp32)."""

_CPU_BLOCK = 1 << 18
"""Scores worked out at once on a CPU (1 MiB of fp32): what they are made of stays in the cache, and small."""


@dataclass(frozen=True)
class Scorer:
    """What the affinity of any subset of tokens is computed from, for one image.

    Attributes:
        q: Queries, (N, C).
        k: Keys, (N, C).
        surrogates: Surrogate tokens, all heads side by side, (M, C).
        lean: sigmoid(phi), share of the query side, (N, 1).
        token_mask: True where a token is real, (N,), or None.
        activation: "softmax" or "laplace".
        score: "affinity" or "linear".
    """

    q: Tensor
    k: Tensor
    surrogates: Tensor
    lean: Tensor
    token_mask: Tensor | None
    activation: str
    score: str

    def __call__(self, tokens: slice | Tensor) -> Tensor:
        """Scores of a range or of ids, (tokens, M) fp32 or float64, by blocks; MASKED for masked tokens."""
        if isinstance(tokens, slice):
            first, stop, _ = tokens.indices(len(self.lean))
        else:
            first, stop = 0, len(tokens)
        scores = self.surrogates.new_empty(stop - first, len(self.surrogates))
        step = max(1, (_CPU_BLOCK if scores.device.type == "cpu" else WORKSPACE) // len(self.surrogates))
        for start in range(first, stop, step):
            block = slice(start, min(start + step, stop))
            scores[start - first : block.stop - first] = self._score(
                block if isinstance(tokens, slice) else tokens[block]
            )
        return scores

    def _score(self, tokens: slice | Tensor) -> Tensor:
        dtype = self.surrogates.dtype
        q, k, lean = self.q[tokens].to(dtype), self.k[tokens].to(dtype), self.lean[tokens]
        if self.score == "linear":
            scores = torch.lerp(k, q, lean) @ self.surrogates.T
        else:
            scores = torch.lerp(self._cluster_share(k), self._cluster_share(q), lean)
        if self.token_mask is not None:
            scores.masked_fill_(~self.token_mask[tokens, None], MASKED)
        return scores.add_(0.0)  # NOTE: -0.0 becomes 0.0, which sorting by bits would tell apart

    def _cluster_share(self, x: Tensor) -> Tensor:
        logits = x @ self.surrogates.T
        return logits.softmax(1) if self.activation == "softmax" else laplace(logits * x.shape[1] ** -0.5)


def make_scorers(  # noqa: PLR0913 - the operands of routing
    q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, token_mask: Tensor | None, activation: str, score: str
) -> list[Scorer]:
    """One scorer an image. q, k: (B, H, N, D); surrogates: (H, M, D); phi: (B, N, 1); token_mask: (B, N) or None."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    flat = surrogates.to(dtype).transpose(0, 1).flatten(1)  # M, C
    rows_q, rows_k = q.transpose(1, 2).flatten(2), k.transpose(1, 2).flatten(2)  # B, N, C
    lean = torch.sigmoid(phi.to(dtype))
    masks: list[Tensor | None] = [None] * q.shape[0] if token_mask is None else list(token_mask)
    return [Scorer(rows_q[b], rows_k[b], flat, lean[b], masks[b], activation, score) for b in range(q.shape[0])]


def best_tokens(scorer: Scorer, num_tokens: int, cluster_size: int) -> Tensor:
    """Top-K: the ``cluster_size`` best tokens of every cluster, (M, K) int64, held as a running best over chunks."""
    step = max(cluster_size, WORKSPACE // scorer.surrogates.shape[0])
    best: Tensor | None = None
    index: Tensor | None = None
    for start in range(0, num_tokens, step):
        scores = scorer(slice(start, start + step)).T.contiguous()  # M, tokens: contiguous rows are 3x faster to rank
        value, place = scores.topk(min(cluster_size, scores.shape[1]), dim=1)
        place = place + start
        if best is not None and index is not None:
            value, place = torch.cat([best, value], 1), torch.cat([index, place], 1)
            value, keep = value.topk(min(cluster_size, value.shape[1]), dim=1)
            place = place.gather(1, keep)
        best, index = value, place
    if index is None:
        raise ValueError(f"expected at least one token, got {num_tokens=}")
    return index
