"""Steps 1 and 2 of CAST (arXiv 2402.04239): how much each token belongs to each cluster, and who joins which.

    affinity = sigmoid(phi) f_M(sum_h q_h S_h') + (1 - sigmoid(phi)) f_M(sum_h k_h S_h')          (B, N, M)

One clustering for all heads. f_M is the softmax over clusters, unscaled, or the Laplace function of the argument times
C^-0.5 (unscaled, nearly all its values would be exactly 0 or 1). The "linear" score leaves f out,
``[sigmoid(phi) q + (1 - sigmoid(phi)) k] S'``; it is another definition, cheaper by half. Scores only choose indices:
they are computed in fp32 (float64 stays float64), without a gradient, by chunks of tokens.

*Top-K*: every cluster takes its K best tokens. *SA Top-K*: sort all pairs (token, cluster) by score, take a pair if
both sides are free. Tokens and clusters rank each other by the same score, so this greedy result is the unique stable
matching, and deferred acceptance finds it without sorting N * M pairs: every free token proposes to the best cluster
whose bar (its worst member, once it is full) the token clears, each cluster keeps its K best, until no token is free.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, library
from torch.nn import functional as F

from castvision.ops.arithmetic import is_eager, wide_dtype
from castvision.ops.paper import laplace

WORKSPACE = 1 << 24
"""Largest number of scores held at once (64 MiB of fp32)."""

_CPU_BLOCK = 1 << 18
"""Scores worked out at once on a CPU (1 MiB of fp32): what they are made of stays in the cache, and small."""

Scores = Callable[[slice | Tensor], Tensor]
"""Called with a slice or with token ids (rows,), gives their scores (rows, M): fp32 or float64, -inf for masked tokens,
always the same ones for a token."""


def learned_score(q: Tensor, k: Tensor, surrogates: Tensor, lean: Tensor, activation: str, score: str) -> Tensor:
    """Step 1: q, k (…, N, C), surrogates (M, C) and lean, sigmoid(phi), (…, N, 1) to scores (…, N, M)."""
    towards = surrogates.T
    if score == "linear":
        return torch.lerp(k, q, lean) @ towards
    by_query, by_key = q @ towards, k @ towards
    if activation == "softmax":
        return torch.lerp(by_key.softmax(-1), by_query.softmax(-1), lean)
    factor = float(q.shape[-1]) ** -0.5
    return torch.lerp(laplace(by_key * factor), laplace(by_query * factor), lean)


@dataclass(frozen=True)
class TokenScores:
    """Scores of one image: by learned surrogates, or with ``score="nearness"`` -|k - s|^2.

    q, k: (N, C); surrogates: (M, C); lean: (N, 1) or None; usable: clusters to fill, (M,) or None; token_mask: (N,) or
    None.
    """

    q: Tensor
    k: Tensor
    surrogates: Tensor
    lean: Tensor | None
    usable: Tensor | None
    token_mask: Tensor | None
    activation: str
    score: str

    def __call__(self, tokens: slice | Tensor) -> Tensor:
        """Of some tokens, (rows, M)."""
        q, k, s = self.q[tokens], self.k[tokens], self.surrogates
        lean = None if self.lean is None else self.lean[tokens]
        scores = s.new_empty(len(k), len(s))
        step = max(1, (_CPU_BLOCK if scores.device.type == "cpu" else WORKSPACE) // len(s))
        for block in (slice(start, start + step) for start in range(0, len(k), step)):
            rows = k[block].to(scores.dtype)
            if lean is None:
                nearness = torch.addmm(-s.square().sum(1), rows, s.T, alpha=2)
                scores[block] = nearness - rows.square().sum(1, keepdim=True)
            else:
                scores[block] = learned_score(
                    q[block].to(scores.dtype), rows, s, lean[block], self.activation, self.score
                )
        if self.usable is not None:
            scores.masked_fill_(~self.usable, -torch.inf)
        return scores if self.token_mask is None else scores.masked_fill_(~self.token_mask[tokens, None], -torch.inf)


def nearest_learned(
    q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, activation: str = "softmax", routing_score: str = "affinity"
) -> Tensor:
    """The cluster that each token scores highest in, the first of equals.

    Args:
        q: Queries, (B, N, H, D).
        k: Keys, (B, N, H, D).
        surrogates: Surrogate tokens, (H, M, D).
        phi: Lean of each token, (B, N, 1).
        activation: "softmax" or "laplace".
        routing_score: "affinity" or "linear".

    Returns:
        labels (B, N) int64, without a gradient.
    """
    dtype = wide_dtype(q.dtype)
    flat = surrogates.detach().transpose(0, 1).flatten(1).to(dtype)
    rows = [q.detach().flatten(2).to(dtype), k.detach().flatten(2).to(dtype), phi.detach().to(dtype).sigmoid()]
    if not torch.jit.is_scripting():
        if is_eager():
            step = max(1, _CPU_BLOCK // (flat.shape[0] * q.shape[0]))
            parts = zip(*(torch.split(x, step, 1) for x in rows), strict=True)
            labels = [learned_score(a, b, flat, c, activation, routing_score).argmax(2) for a, b, c in parts]
            return torch.cat(labels, 1)
    return learned_score(rows[0], rows[1], flat, rows[2], activation, routing_score).argmax(2)


def learned_clusters(
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    token_mask: Tensor | None,
    cluster_size: int,
    assignment: str,
    activation: str = "softmax",
    routing_score: str = "affinity",
) -> Tensor:
    """Steps 1 and 2: the clusters that learned surrogates form.

    Args:
        q: Queries, (B, N, H, D).
        k: Keys, (B, N, H, D).
        surrogates: Surrogate tokens, (H, M, D).
        phi: Lean of each token, (B, N, 1).
        token_mask: True where a token is real, (B, N) bool, or None; others are taken last.
        cluster_size: K, with M * K >= N for "sa_topk".
        assignment: "topk" or "sa_topk".
        activation: "softmax" or "laplace".
        routing_score: "affinity" or "linear".

    Returns:
        index (B, M, K) int64, padding = N, without a gradient.
    """
    q, k, phi = q.detach().flatten(2), k.detach().flatten(2), phi.detach()
    flat = surrogates.detach().transpose(0, 1).flatten(1)[None]
    index: Tensor = torch.ops.castvision.route(
        q, k, flat, phi, None, token_mask, cluster_size, assignment, activation, routing_score
    )
    return index


def matched_clusters(
    features: Tensor, centers: Tensor, usable: Tensor, token_mask: Tensor | None, cluster_size: int
) -> Tensor:
    """SA Top-K by nearness, scores -|z - s|^2, without a gradient.

    Args:
        features: z, (B, N, F).
        centers: s, (B, M, F).
        usable: Clusters to fill, (B, M) bool; others take what finds no place there.
        token_mask: True where a token is real, (B, N) bool, or None; others are taken last.
        cluster_size: K, with M * K >= N.

    Returns:
        index (B, M, K) int64, padding = N.
    """
    index: Tensor = torch.ops.castvision.route(
        features, features, centers, None, usable, token_mask, cluster_size, "sa_topk", "softmax", "nearness"
    )
    return index


_custom_op = cast(Callable[..., Callable[[Callable[..., Any]], Any]], library.custom_op)


@_custom_op("castvision::route", mutates_args=())
def _route(
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor | None,
    usable: Tensor | None,
    token_mask: Tensor | None,
    cluster_size: int,
    assignment: str,
    activation: str,
    score: str,
) -> Tensor:
    """A node of its own for compile, export and script: matching takes as many rounds as the data ask for."""
    dtype, num_tokens, num_clusters = wide_dtype(q.dtype), q.shape[1], surrogates.shape[1]
    index = []
    # autocast stays on inside an operator, and would round scores to half precision
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        for b in range(q.shape[0]):
            scores = TokenScores(
                q[b], k[b], surrogates[b % len(surrogates)].to(dtype),
                None if phi is None else phi[b].to(dtype).sigmoid(),
                None if usable is None else usable[b], None if token_mask is None else token_mask[b], activation, score,
            )  # fmt: skip
            if assignment == "topk":
                index.append(best_tokens(scores, num_tokens, num_clusters, cluster_size))
            else:
                index.append(match_clusters(scores, num_tokens, num_clusters, cluster_size))
    return torch.stack(index)


@_route.register_fake
def _(q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor | None, usable: Tensor | None, token_mask: Tensor | None,
      cluster_size: int, *_: str) -> Tensor:  # fmt: skip
    return q.new_empty((q.shape[0], surrogates.shape[1], cluster_size), dtype=torch.long)


def best_tokens(scores: Scores, num_tokens: int, num_clusters: int, cluster_size: int) -> Tensor:
    """Top-K of one image: the best tokens of every cluster, held as a running best over chunks.

    Args:
        scores: Of its tokens.
        num_tokens: N.
        num_clusters: M.
        cluster_size: K.

    Returns:
        index (M, K) int64, best first, padding = N where K > N.
    """
    step = max(cluster_size, WORKSPACE // num_clusters)
    best: list[Tensor] = []  # scores and tokens, (M, at most K)
    for start in range(0, num_tokens, step):
        part = ranked(scores(slice(start, min(start + step, num_tokens))))
        part = part.T.contiguous()  # M, tokens: contiguous rows are 3 times faster to rank
        value, token = part.topk(min(cluster_size, part.shape[1]), dim=1)
        token = token + start
        if best:
            value, token = torch.cat([best[0], value], 1), torch.cat([best[1], token], 1)
            value, keep = value.topk(min(cluster_size, value.shape[1]), dim=1)
            token = token.gather(1, keep)
        best = [value, token]
    return F.pad(best[1], (0, cluster_size - best[1].shape[1]), value=num_tokens)


def match_clusters(scores: Scores, num_tokens: int, num_clusters: int, cluster_size: int) -> Tensor:
    """SA Top-K of one image by any scores, in vectorised rounds: every token in exactly one cluster, at most K in each.

    At most ``WORKSPACE`` scores exist at once: all of them, asked for by one slice, if they fit; else those of the free
    tokens, asked for in every round by always as many ids, since a matrix product of another number of rows may round
    otherwise. Identical tokens need up to M rounds.

    Args:
        scores: Of its tokens; larger is better. A token that is masked (-inf) or whose scores are NaN comes last, and
            takes a place that is left.
        num_tokens: N.
        num_clusters: M.
        cluster_size: K, with M * K >= N.

    Returns:
        index (M, K) int64, members ascending, padding = N.

    Raises:
        ValueError: M * K < N.
    """
    if num_clusters * cluster_size < num_tokens:
        raise ValueError(
            f"expected places for all tokens, M * K >= N, got M={num_clusters}, K={cluster_size}, N={num_tokens}"
        )
    step = max(1, WORKSPACE // num_clusters)
    table = ranked(scores(slice(0, num_tokens if num_tokens <= step else 0)))
    token = torch.arange(num_tokens, device=table.device)
    home = torch.full_like(token, num_clusters)  # cluster of each token; M: none yet
    kept = table.new_full((num_tokens,), -torch.inf)  # its score there
    bar_score = table.new_full((num_clusters,), -torch.inf)
    bar_token = torch.full((num_clusters,), num_tokens, device=table.device)
    for _ in range(num_tokens * num_clusters + 1):  # no pair is proposed twice
        free = (home == num_clusters).nonzero()[:, 0]
        if not len(free):
            break
        for first in range(0, len(free), step):
            some = free[first : first + step]
            rows = table[some] if len(table) else ranked(scores(F.pad(some, (0, step - len(some)))))[: len(some)]
            clears = (rows > bar_score) | ((rows == bar_score) & (some[:, None] < bar_token))
            kept[some], home[some] = rows.masked_fill_(~clears, -torch.inf).max(1)
        # rank of every token inside its cluster: by cluster, then score descending, then token
        order = token[kept.argsort(descending=True, stable=True)]
        order = order[home[order].argsort(stable=True)]
        size = torch.bincount(home, minlength=num_clusters)
        start = size.cumsum(0) - size
        rank = token - start[home[order]]
        full = size >= cluster_size
        worst = order[(start + cluster_size - 1).clamp(max=num_tokens - 1)]
        bar_score = torch.where(full, kept[worst], bar_score)
        bar_token = torch.where(full, worst, bar_token)
        home[order[rank >= cluster_size]] = num_clusters
    else:  # scores that change from call to call: any place that is left
        free = (home == num_clusters).nonzero()[:, 0]
        room = cluster_size - torch.bincount(home, minlength=num_clusters)[:num_clusters]
        home[free] = torch.arange(num_clusters, device=home.device).repeat_interleave(room)[: len(free)]
    return _index_of(home, num_clusters, cluster_size)


def ranked(scores: Tensor) -> Tensor:
    """Scores that can be compared: NaN and -inf (masked) become the lowest number, below every real score."""
    lowest = torch.finfo(scores.dtype).min
    return scores.nan_to_num(nan=lowest, neginf=lowest).add_(0.0)  # -0.0 becomes 0.0, which sorts by bits tell apart


def _index_of(home: Tensor, num_clusters: int, cluster_size: int) -> Tensor:
    """Partition as index. home: (N,) cluster of each token. Returns (M, K) int64, padding = N."""
    order = home.argsort(stable=True)
    size = torch.bincount(home, minlength=num_clusters)
    start = size.cumsum(0) - size
    rank = torch.arange(len(home), device=home.device) - start[home[order]]
    index = home.new_full((num_clusters, cluster_size), len(home))
    index[home[order], rank] = order
    return index
