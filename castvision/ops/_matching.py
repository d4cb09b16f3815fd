"""SA Top-K, the partition of CAST: sort all pairs (token, cluster) by score, take a pair if both sides are free.

Tokens and clusters rank each other by the same score, so this greedy result is the unique stable matching, and deferred
acceptance finds it without sorting N * M pairs: every free token proposes to the best cluster whose bar (its worst
member, once it is full) the token clears, each cluster keeps its K best, until no token is free. Three forms, equal to
the letter: :func:`match_greedy` (the definition), :func:`match_rounds` (vectorised, any device), :func:`match_heaps`
(compiled, CPU; identical tokens cost nothing extra there, while the rounds then take M).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.ops._affinity import WORKSPACE

Scores = Callable[[slice | Tensor], Tensor]
"""Called with a slice or token ids (rows,), gives their scores (rows, M)."""


def match_greedy(scores: Tensor, cluster_size: int) -> Tensor:
    """The definition, for tests. scores: (N, M). Returns index (M, K) int64, members ascending, padding = N."""
    num_tokens, num_clusters = scores.shape
    order = sorted(
        ((-value, n, c) for n, row in enumerate(scores.tolist()) for c, value in enumerate(row)),
    )
    members: list[list[int]] = [[] for _ in range(num_clusters)]
    free = [True] * num_tokens
    for _, n, c in order:
        if free[n] and len(members[c]) < cluster_size:
            free[n] = False
            members[c].append(n)
    rows = [sorted(m) + [num_tokens] * (cluster_size - len(m)) for m in members]
    return torch.tensor(rows, device=scores.device)


def match_rounds(scores: Scores, num_tokens: int, num_clusters: int, cluster_size: int) -> Tensor:
    """Deferred acceptance in vectorised rounds for one image, on any device: at most WORKSPACE scores exist at once.

    Args:
        scores: Called with a slice or token ids (rows,), gives their scores (rows, M). Once with a slice of all if they
            fit; else in every round with the free tokens' ids, always as many of them: a matrix product of another
            number of rows may round otherwise, and a token's scores must not change.
        num_tokens: N.
        num_clusters: M.
        cluster_size: K, with M * K >= N.

    Returns:
        index (M, K) int64 as :func:`match_greedy`.
    """
    step = max(1, WORKSPACE // num_clusters)
    table = scores(slice(0, num_tokens if num_tokens <= step else 0))
    token = torch.arange(num_tokens, device=table.device)
    home = torch.full_like(token, num_clusters)  # cluster of each token; M: none yet
    kept = table.new_full((num_tokens,), -torch.inf)  # its score there
    bar_score = table.new_full((num_clusters,), -torch.inf)
    bar_token = torch.full((num_clusters,), num_tokens, device=table.device)
    while True:
        free = (home == num_clusters).nonzero()[:, 0]
        if not len(free):
            return _index_of(home, num_clusters, cluster_size)
        for first in range(0, len(free), step):
            some = free[first : first + step]
            rows = table[some] if len(table) else scores(F.pad(some, (0, step - len(some))))[: len(some)]
            rows = rows.nan_to_num(nan=torch.finfo(rows.dtype).min)
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


def match_heaps(scores: Scores, num_tokens: int, num_clusters: int, cluster_size: int) -> Tensor:
    """Compiled deferred acceptance for one image on a CPU, streamed: at most WORKSPACE scores exist at once.

    Args:
        scores: Called with a slice or token ids (rows,), gives their scores (rows, M), contiguous, on the CPU. A token
            evicted after its chunk was dropped is scored again, together with all others of that fate.
        num_tokens: N.
        num_clusters: M.
        cluster_size: K, with M * K >= N.

    Returns:
        index (M, K) int64, members ascending, padding = N.
    """
    from castvision.ops._matching_numba import propose

    step = max(1, WORKSPACE // num_clusters)
    everyone = torch.arange(num_tokens)
    heap_token = torch.full((num_clusters, cluster_size), num_tokens)
    fill = torch.zeros(num_clusters, dtype=torch.int32)
    row_of = torch.full((num_tokens + 1,), -1, dtype=torch.int32)
    pending = torch.empty(num_tokens, dtype=torch.int64)
    heap_score: Tensor | None = None
    queue = [slice(start, min(start + step, num_tokens)) for start in range(0, num_tokens, step)]
    waiting: list[Tensor] = []
    while queue or waiting:
        if not queue:
            late, waiting = torch.cat(waiting), []
            chunks: list[slice | Tensor] = [late[i : i + step] for i in range(0, len(late), step)]
        else:
            chunks, queue = list(queue), []
        for chunk in chunks:
            tokens = everyone[chunk]
            rows = scores(chunk).contiguous()
            if heap_score is None:
                heap_score = rows.new_full((num_clusters, cluster_size), -torch.inf)
            row_of[tokens] = torch.arange(len(tokens), dtype=torch.int32)
            arrays = (rows, tokens, row_of, heap_score, heap_token, fill, pending)
            evicted = propose(*(a.numpy() for a in arrays))
            row_of[tokens] = -1
            if evicted:
                waiting.append(pending[:evicted].clone())
    return heap_token.sort(1)[0]


def _index_of(home: Tensor, num_clusters: int, cluster_size: int) -> Tensor:
    """Partition as index. home: (N,) cluster of each token. Returns (M, K) int64, padding = N."""
    order = home.argsort(stable=True)
    size = torch.bincount(home, minlength=num_clusters)
    start = size.cumsum(0) - size
    rank = torch.arange(len(home), device=home.device) - start[home[order]]
    index = home.new_full((num_clusters, cluster_size), len(home))
    index[home[order], rank] = order
    return index
