"""Loops compiled by numba for the CPU, and the one switch that turns them off.

``CASTVISION_NUMBA=0`` in the environment keeps numba from being imported at all; every compiled loop has a form in
PyTorch that gives the same. Import this module where a loop is needed, not at the top: numba takes a quarter of a
second to import.

The matching of clusters (:func:`place`) works on arrays of one image:

    scores (rows, M) float, no NaN    tokens (rows,) int64: token id of each row    row_of (N + 1,) int32: row or -1
    heap_score (M, K) float, heap_token (M, K) int64: each cluster's members, worst first    fill (M,) int32: its size

Order of pairs: score descending, then token ascending, then cluster ascending. A pair better than a full cluster's
worst member clears its bar. Bars only rise, so a token need not remember where it was refused.
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
def place(
    scores: Array,
    tokens: Array,
    row_of: Array,
    heap_score: Array,
    heap_token: Array,
    fill: Array,
    pending: Array,
) -> int:
    """Place the tokens of a chunk: each goes to the best cluster that takes it, and may push a worse member out.

    Args:
        scores: Of the chunk's tokens, see the module for all shapes.
        tokens: Their ids.
        row_of: Row of each token in ``scores``, -1 for tokens of other chunks.
        heap_score: Scores of the members so far; changed.
        heap_token: The members so far; changed.
        fill: Sizes of the clusters; changed.
        pending: Takes the ids of tokens that are pushed out and whose scores are not here, (N,) int64.

    Returns:
        How many were written to ``pending``.
    """
    num_clusters, cluster_size = heap_score.shape
    bar_score = np.full(num_clusters, -np.inf, scores.dtype)
    bar_token = np.full(num_clusters, np.iinfo(np.int64).max, np.int64)
    for c in range(num_clusters):
        if fill[c] == cluster_size:
            bar_score[c], bar_token[c] = heap_score[c, 0], heap_token[c, 0]
    waiting = 0
    for first in range(tokens.shape[0]):
        token = tokens[first]
        while token >= 0:
            score = scores[row_of[token]]
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
                if row_of[loser] < 0:
                    pending[waiting] = loser
                    waiting += 1
                    token = -1
            if fill[c] == cluster_size:
                bar_score[c], bar_token[c] = heap_score[c, 0], heap_token[c, 0]
    return waiting
