"""Loops compiled by numba for the CPU, and the one switch that turns them off.

``CASTVISION_NUMBA=0`` in the environment keeps numba from being imported at all; every compiled loop has a form in
PyTorch that gives the same. Import this module where a loop is needed, not at the top: numba takes a quarter of a
second to import.
"""

import os
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def is_enabled() -> bool:
    """Whether compiled loops may be used: unless the environment says ``CASTVISION_NUMBA=0``."""
    return os.environ.get("CASTVISION_NUMBA", "1") != "0"


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a function with numba, without the interpreter's lock; unchanged where compiled loops are turned off.

    Args:
        function: What numba can compile.
        **options: Further options of ``numba.njit``.

    Returns:
        The compiled function, cached on disk where a folder can be written, else in memory.
    """
    if not is_enabled():
        return function
    import numba

    try:
        done = numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # numba's "cannot cache function: no locator available"
        done = numba.njit(nogil=True, **options)(function)
    return cast(Callable[..., Any], done)


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
def place(scores: Array, heap_score: Array, heap_token: Array, fill: Array) -> None:
    """SA Top-K of one image: each token goes to the best cluster that takes it, and may push a worse member out.

    Order of pairs: score descending, then token ascending, then cluster ascending. A pair better than a full cluster's
    worst member clears its bar. Bars only rise, so a token need not remember where it was refused.

    Args:
        scores: (N, M) floating, no NaN.
        heap_score: Takes the scores of each cluster's members, worst first, (M, K).
        heap_token: Takes the members, (M, K) int64.
        fill: Sizes of the clusters, (M,) int32, zeros; changed.
    """
    num_clusters, cluster_size = heap_score.shape
    bar_score = np.full(num_clusters, -np.inf, scores.dtype)
    bar_token = np.full(num_clusters, np.iinfo(np.int64).max, np.int64)
    for first in range(scores.shape[0]):
        token = first
        while token >= 0:
            score = scores[token]
            c = _best_cluster(score, token, bar_score, bar_token)
            if c < 0:  # cannot be while M * K >= N
                break
            if fill[c] < cluster_size:
                heap_score[c, fill[c]], heap_token[c, fill[c]] = score[c], token
                _sift_up(heap_score[c], heap_token[c], fill[c])
                fill[c] += 1
                token = -1
            else:
                loser = heap_token[c, 0]
                heap_score[c, 0], heap_token[c, 0] = score[c], token
                _sift_down(heap_score[c], heap_token[c], cluster_size)
                token = loser
            if fill[c] == cluster_size:
                bar_score[c], bar_token[c] = heap_score[c, 0], heap_token[c, 0]
