"""The compiled half of SA Top-K on a CPU: tokens propose, clusters keep their best (Gale-Shapley with heaps).

Imported at the first CPU routing, since numba takes a quarter of a second to import. Arrays, for one image:

    scores (rows, M) float   tokens (rows,) int64: token id of each row   row_of (N + 1,) int32: row of a token or -1
    heap_score (M, K) float, heap_token (M, K) int64: each cluster's members, worst first   fill (M,) int32: its size

Order of pairs: score descending, then token ascending, then cluster ascending. A pair better than a full cluster's
worst member clears its bar. Bars only rise, so a token need not remember where it was refused.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from castvision.ops._compiled import compiled

Array = NDArray[Any]


@compiled
def _worse(score_a: float, token_a: int, score_b: float, token_b: int) -> bool:
    return score_a < score_b or (score_a == score_b and token_a > token_b)


@compiled
def _sift_up(scores: Array, tokens: Array, i: int) -> None:
    while i > 0:
        parent = (i - 1) // 2
        if not _worse(scores[i], tokens[i], scores[parent], tokens[parent]):
            return
        scores[i], scores[parent] = scores[parent], scores[i]
        tokens[i], tokens[parent] = tokens[parent], tokens[i]
        i = parent


@compiled
def _sift_down(scores: Array, tokens: Array, size: int) -> None:
    i = 0
    while True:
        worst = i
        for child in (2 * i + 1, 2 * i + 2):
            if child < size and _worse(scores[child], tokens[child], scores[worst], tokens[worst]):
                worst = child
        if worst == i:
            return
        scores[i], scores[worst] = scores[worst], scores[i]
        tokens[i], tokens[worst] = tokens[worst], tokens[i]
        i = worst


@compiled
def _best_cluster(row: Array, token: int, bar_score: Array, bar_token: Array) -> int:
    """The cluster with the highest score among those whose bar the token clears, the first of equals; -1 if none."""
    best, best_score = -1, -np.inf
    for c in range(row.shape[0]):
        score = row[c]
        if score > best_score and score >= bar_score[c] and (score > bar_score[c] or token < bar_token[c]):
            best, best_score = c, score
    return best


@compiled
def _first_with_room(fill: Array, cluster_size: int) -> int:
    for c in range(fill.shape[0]):
        if fill[c] < cluster_size:
            return c
    return -1


@compiled
def propose(  # noqa: PLR0913 - numba takes arrays, not objects
    scores: Array,
    tokens: Array,
    row_of: Array,
    heap_score: Array,
    heap_token: Array,
    fill: Array,
    pending: Array,
) -> int:
    """Place the tokens of this chunk; returns how many of other chunks were evicted and written to ``pending``."""
    num_clusters, cluster_size = heap_score.shape
    bar_score = np.full(num_clusters, -np.inf, scores.dtype)
    bar_token = np.full(num_clusters, np.iinfo(np.int64).max, np.int64)
    for c in range(num_clusters):
        if fill[c] == cluster_size:
            bar_score[c], bar_token[c] = heap_score[c, 0], heap_token[c, 0]
    evicted = 0
    for first in range(tokens.shape[0]):
        token = tokens[first]
        while token >= 0:
            row = scores[row_of[token]]
            c = _best_cluster(row, token, bar_score, bar_token)
            if c < 0:  # NaN or -inf scores: any free place; one exists, since M * K >= N
                c = _first_with_room(fill, cluster_size)
                if c < 0:
                    break
            score = row[c] if row[c] == row[c] else -np.inf
            if fill[c] < cluster_size:
                heap_score[c, fill[c]], heap_token[c, fill[c]] = score, token
                _sift_up(heap_score[c], heap_token[c], fill[c])
                fill[c] += 1
                token = -1
            else:
                loser = heap_token[c, 0]
                heap_score[c, 0], heap_token[c, 0] = score, token
                _sift_down(heap_score[c], heap_token[c], cluster_size)
                token = loser
                if row_of[loser] < 0:
                    pending[evicted] = loser
                    evicted += 1
                    token = -1
            if fill[c] == cluster_size:
                bar_score[c], bar_token[c] = heap_score[c, 0], heap_token[c, 0]
    return evicted
