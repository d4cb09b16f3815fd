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

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, library
from torch.nn import functional as F

from castvision.ops.arithmetic import wide_dtype
from castvision.ops.paper import laplace

WORKSPACE = 1 << 24
"""Largest number of scores held at once (64 MiB of fp32)."""

_CPU_BLOCK = 1 << 18
"""Scores worked out at once on a CPU (1 MiB of fp32): what they are made of stays in the cache, and small."""

Scores = Callable[[slice | Tensor], Tensor]
"""Called with a slice or with token ids (rows,), gives their scores (rows, M): fp32 or float64, -inf for masked tokens,
always the same ones for a token."""


@dataclass(frozen=True)
class _LearnedScores:
    """Scores of one image. q, k: (N, C); surrogates: (M, C); lean, sigmoid(phi): (N, 1); token_mask: (N,) or None."""

    q: Tensor
    k: Tensor
    surrogates: Tensor
    lean: Tensor
    token_mask: Tensor | None
    activation: str
    routing_score: str

    def __call__(self, tokens: slice | Tensor) -> Tensor:
        q, k, lean = self.q[tokens], self.k[tokens], self.lean[tokens]
        scores = self.surrogates.new_empty(len(q), len(self.surrogates))
        step = max(1, (_CPU_BLOCK if scores.device.type == "cpu" else WORKSPACE) // scores.shape[1])
        for block in (slice(start, start + step) for start in range(0, len(q), step)):
            scores[block] = self._score(q[block].to(scores.dtype), k[block].to(scores.dtype), lean[block])
        return scores if self.token_mask is None else scores.masked_fill_(~self.token_mask[tokens, None], -torch.inf)

    def _score(self, q: Tensor, k: Tensor, lean: Tensor) -> Tensor:
        if self.routing_score == "linear":
            return torch.lerp(k, q, lean) @ self.surrogates.T
        return torch.lerp(self._share(k), self._share(q), lean)

    def _share(self, x: Tensor) -> Tensor:
        logits = x @ self.surrogates.T
        return logits.softmax(1) if self.activation == "softmax" else laplace(logits * x.shape[1] ** -0.5)


def learned_scores(
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    token_mask: Tensor | None,
    activation: str = "softmax",
    routing_score: str = "affinity",
) -> list[Scores]:
    """Step 1 for any tokens of each image.

    Args:
        q: Queries, (B, N, H, D).
        k: Keys, (B, N, H, D).
        surrogates: Surrogate tokens, (H, M, D).
        phi: Lean of each token, (B, N, 1).
        token_mask: True where a token is real, (B, N) bool, or None.
        activation: "softmax" or "laplace".
        routing_score: "affinity" or "linear".

    Returns:
        One function an image, see ``Scores``.
    """
    dtype = wide_dtype(q.dtype)
    flat = surrogates.to(dtype).transpose(0, 1).flatten(1)  # M, C
    rows_q, rows_k, lean = q.flatten(2), k.flatten(2), torch.sigmoid(phi.to(dtype))
    masks: list[Tensor | None] = [None] * q.shape[0] if token_mask is None else list(token_mask)
    return [
        _LearnedScores(rows_q[b], rows_k[b], flat, lean[b], masks[b], activation, routing_score)
        for b in range(q.shape[0])
    ]


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
    """Steps 1 and 2: the clusters that learned surrogates form. A node of its own for compile, export and script.

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
    index: Tensor = torch.ops.castvision.route(
        q, k, surrogates, phi, token_mask, cluster_size, assignment, activation, routing_score
    )
    return index


def nearest_learned(
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    activation: str = "softmax",
    routing_score: str = "affinity",
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
    labels: Tensor = torch.ops.castvision.nearest_learned(q, k, surrogates, phi, activation, routing_score)
    return labels


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
    index: Tensor = torch.ops.castvision.match(features, centers, usable, token_mask, cluster_size)
    return index


_custom_op = cast(Callable[..., Callable[[Callable[..., Any]], Any]], library.custom_op)


@_custom_op("castvision::route", mutates_args=())
def _route(
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    token_mask: Tensor | None,
    cluster_size: int,
    assignment: str,
    activation: str,
    routing_score: str,
) -> Tensor:
    num_tokens, num_clusters = q.shape[1], surrogates.shape[1]
    # autocast stays on inside an operator, and would round scores to half precision
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        images = learned_scores(q, k, surrogates, phi, token_mask, activation, routing_score)
        if assignment == "topk":
            index = [best_tokens(scores, num_tokens, num_clusters, cluster_size) for scores in images]
        else:
            index = [match_clusters(scores, num_tokens, num_clusters, cluster_size, q.device) for scores in images]
        return torch.stack(index)


@_route.register_fake
def _(
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    token_mask: Tensor | None,
    cluster_size: int,
    assignment: str,
    activation: str,
    routing_score: str,
) -> Tensor:
    return q.new_empty((q.shape[0], surrogates.shape[1], cluster_size), dtype=torch.long)


@_custom_op("castvision::nearest_learned", mutates_args=())
def _nearest_learned(
    q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, activation: str, routing_score: str
) -> Tensor:
    num_tokens, step = q.shape[1], max(1, WORKSPACE // surrogates.shape[1])
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        images = learned_scores(q, k, surrogates, phi, None, activation, routing_score)
        chunks = [slice(start, min(start + step, num_tokens)) for start in range(0, num_tokens, step)]
        return torch.stack([torch.cat([_ranked(scores(chunk)).argmax(1) for chunk in chunks]) for scores in images])


@_nearest_learned.register_fake
def _(q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, activation: str, routing_score: str) -> Tensor:
    return q.new_empty(q.shape[:2], dtype=torch.long)


@_custom_op("castvision::match", mutates_args=())
def _match(features: Tensor, centers: Tensor, usable: Tensor, token_mask: Tensor | None, cluster_size: int) -> Tensor:
    dtype = wide_dtype(features.dtype)
    features, centers = features.to(dtype), centers.to(dtype)

    def scores(b: int, tokens: slice | Tensor) -> Tensor:
        z, s = features[b, tokens], centers[b]
        nearness = torch.addmm(-s.square().sum(1), z, s.T, alpha=2) - z.square().sum(1, keepdim=True)
        hidden = ~usable[b] if token_mask is None else ~(usable[b] & token_mask[b, tokens, None])
        return nearness.masked_fill(hidden, -torch.inf)

    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        num_tokens, num_clusters = features.shape[1], centers.shape[1]
        images = (functools.partial(scores, b) for b in range(features.shape[0]))
        return torch.stack([match_clusters(s, num_tokens, num_clusters, cluster_size, features.device) for s in images])


@_match.register_fake
def _(features: Tensor, centers: Tensor, usable: Tensor, token_mask: Tensor | None, cluster_size: int) -> Tensor:
    return features.new_empty((*centers.shape[:2], cluster_size), dtype=torch.long)


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
        part = _ranked(scores(slice(start, min(start + step, num_tokens))))
        part = part.T.contiguous()  # M, tokens: contiguous rows are 3 times faster to rank
        value, token = part.topk(min(cluster_size, part.shape[1]), dim=1)
        token = token + start
        if best:
            value, token = torch.cat([best[0], value], 1), torch.cat([best[1], token], 1)
            value, keep = value.topk(min(cluster_size, value.shape[1]), dim=1)
            token = token.gather(1, keep)
        best = [value, token]
    return F.pad(best[1], (0, cluster_size - best[1].shape[1]), value=num_tokens)


def match_clusters(
    scores: Scores, num_tokens: int, num_clusters: int, cluster_size: int, device: torch.device
) -> Tensor:
    """SA Top-K of one image by any scores: every token in exactly one cluster, at most K in each.

    A token that is masked (-inf) or whose scores are NaN comes last, and takes a place that is left.

    Args:
        scores: Of its tokens; larger is better.
        num_tokens: N.
        num_clusters: M.
        cluster_size: K, with M * K >= N.
        device: Where the scores come.

    Returns:
        index (M, K) int64, members ascending, padding = N.

    Raises:
        ValueError: M * K < N.
    """
    if num_clusters * cluster_size < num_tokens:
        raise ValueError(
            f"expected places for all tokens, M * K >= N, got M={num_clusters}, K={cluster_size}, N={num_tokens}"
        )
    if device.type == "cpu":
        from castvision.ops import compiled

        if compiled.is_enabled():
            return match_heaps(scores, num_tokens, num_clusters, cluster_size)
    return match_rounds(scores, num_tokens, num_clusters, cluster_size)


def match_greedy(scores: Tensor, cluster_size: int) -> Tensor:
    """The definition of SA Top-K, for tests: scores (N, M) to index (M, K) as :func:`match_clusters` gives it."""
    num_tokens, num_clusters = scores.shape
    pairs = sorted((-value, n, c) for n, row in enumerate(_ranked(scores).tolist()) for c, value in enumerate(row))
    members: list[list[int]] = [[] for _ in range(num_clusters)]
    free = [True] * num_tokens
    for _, n, c in pairs:
        if free[n] and len(members[c]) < cluster_size:
            free[n] = False
            members[c].append(n)
    return torch.tensor([sorted(m) + [num_tokens] * (cluster_size - len(m)) for m in members], device=scores.device)


def match_rounds(scores: Scores, num_tokens: int, num_clusters: int, cluster_size: int) -> Tensor:
    """Deferred acceptance in vectorised rounds, on any device; arguments and result of :func:`match_clusters`.

    At most ``WORKSPACE`` scores exist at once: all of them, asked for by one slice, if they fit; else those of the free
    tokens, asked for in every round by always as many ids, since a matrix product of another number of rows may round
    otherwise. Identical tokens need up to M rounds.
    """
    step = max(1, WORKSPACE // num_clusters)
    table = _ranked(scores(slice(0, num_tokens if num_tokens <= step else 0)))
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
            rows = table[some] if len(table) else _ranked(scores(F.pad(some, (0, step - len(some)))))[: len(some)]
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


def match_heaps(scores: Scores, num_tokens: int, num_clusters: int, cluster_size: int) -> Tensor:
    """Compiled deferred acceptance on a CPU, streamed; arguments and result of :func:`match_clusters`.

    At most ``WORKSPACE`` scores exist at once. A token that is pushed out after its chunk was dropped is scored again,
    together with all others of that fate. Identical tokens cost nothing extra.
    """
    from castvision.ops.compiled import place

    step = max(1, WORKSPACE // num_clusters)
    heap_token = torch.full((num_clusters, cluster_size), num_tokens)
    heap_score: Tensor | None = None
    fill = torch.zeros(num_clusters, dtype=torch.int32)
    row_of = torch.full((num_tokens + 1,), -1, dtype=torch.int32)
    pending = torch.empty(num_tokens, dtype=torch.int64)
    everyone = torch.arange(num_tokens)
    chunks: list[slice | Tensor] = [slice(i, min(i + step, num_tokens)) for i in range(0, num_tokens, step)]
    while chunks:
        late: list[Tensor] = []
        for chunk in chunks:
            tokens = everyone[chunk]
            rows = _ranked(scores(chunk)).contiguous()
            if heap_score is None:
                heap_score = rows.new_full((num_clusters, cluster_size), -torch.inf)
            row_of[tokens] = torch.arange(len(tokens), dtype=torch.int32)
            arrays = (rows, tokens, row_of, heap_score, heap_token, fill, pending)
            waiting = place(*(a.numpy() for a in arrays))
            row_of[tokens] = -1
            late.append(pending[:waiting].clone())
        again = torch.cat(late)
        chunks = [again[i : i + step] for i in range(0, len(again), step)]
    return heap_token.sort(1)[0]


def _ranked(scores: Tensor) -> Tensor:
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
