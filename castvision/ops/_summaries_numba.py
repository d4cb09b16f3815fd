"""The compiled forward of step 4 on a CPU: each cluster's members are read where they lie, and nothing is copied.

Rows of tokens come as ``Rows``: the memory they lie in, and where in it row n, head h begins. numba vectorises sums
over flat memory, and not over slices whose stride it does not know.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castvision.ops._compiled import compiled

Array = NDArray[Any]

_CLUSTERS_PER_THREAD = 64


class Rows(NamedTuple):
    """Row n of head h, D numbers side by side, begins at ``start + n * token + h * head``."""

    memory: Array
    start: int
    token: int
    head: int


def make_rows(rows: Tensor) -> Rows:
    """One image's rows (N, H, D), of whatever strides; copied only if a row's numbers do not lie side by side."""
    rows = rows.detach()
    rows = rows if rows.stride(2) == 1 else rows.contiguous()
    size = rows.untyped_storage().nbytes() // rows.element_size()
    return Rows(rows.as_strided((size,), (1,), 0).numpy(), int(rows.storage_offset()), rows.stride(0), rows.stride(1))


# NOTE: sums may run in any order, so that they run in vectors; infinities and NaN keep their meaning
_compiled = partial(compiled, fastmath={"reassoc", "contract", "nsz"})


@_compiled
def _shares(route: Rows, surrogates: Array, sharpness: Array, members: Array, valid: Array, p: Array) -> None:
    """Softmax over a cluster's real members into p (H, K); zero in padding, and for a cluster without a real one."""
    num_heads, head_dim = surrogates.shape
    for j in range(len(members)):
        at = route.start + members[j] * route.token
        for h in range(num_heads):
            p[h, j] = -np.inf
            if valid[j]:
                row, surrogate = route.memory[at + h * route.head : at + h * route.head + head_dim], surrogates[h]
                logit = row[0] * surrogate[0]
                for d in range(1, head_dim):
                    logit += row[d] * surrogate[d]
                p[h, j] = logit * sharpness[members[j]]
    for h in range(num_heads):
        top = p[h].max()
        if top == -np.inf:
            p[h] = 0
        else:
            total = 0 * top
            for j in range(len(members)):
                p[h, j] = math.exp(p[h, j] - top)
                total += p[h, j]
            for j in range(len(members)):
                p[h, j] /= total


@_compiled
def _mean(rows: Rows, members: Array, valid: Array, p: Array, mean: Array) -> None:
    """Mean of a cluster's rows by p (H, K) into mean (H, D)."""
    num_heads, head_dim = mean.shape
    mean[:] = 0
    for j in range(len(members)):
        if valid[j]:
            for h in range(num_heads):
                at = rows.start + members[j] * rows.token + h * rows.head
                row, to, weight = rows.memory[at : at + head_dim], mean[h], p[h, j]
                for d in range(head_dim):
                    to[d] += weight * row[d]


@_compiled
def _summarise(  # noqa: PLR0913 - numba takes arrays, not objects
    index: Array,
    valid: Array,
    surrogates: Array,
    sharpness: Array,
    route: Rows,
    sources: tuple[Rows, ...],
    means: tuple[Array, ...],
    first: int,
    last: int,
) -> None:
    p = np.empty((surrogates.shape[1], index.shape[1]), surrogates.dtype)
    for c in range(first, last):
        _shares(route, surrogates[c], sharpness, index[c], valid[c], p)
        for i in range(len(sources)):
            _mean(sources[i], index[c], valid[c], p, means[i][c])


def summarise(
    index: Tensor, valid: Tensor, surrogates: Tensor, sharpness: Tensor, route: Tensor, sources: tuple[Tensor, ...]
) -> tuple[Tensor, ...]:
    """Means of the sources over each cluster of one image, shared out by softmax(route . surrogate * sharpness).

    Args:
        index: Members, (M, K) int64.
        valid: False for padding and masked tokens, (M, K).
        surrogates: (H, M, D), fp32 or float64 like all that follows.
        sharpness: Factor of each token's logits, (N,).
        route: Routing keys, (N, H, D).
        sources: What to take means of, (N, H, D) each.

    Returns:
        For each source (H, M, D); zeros for a cluster without a real token.
    """
    by_cluster = surrogates.transpose(0, 1)  # M, H, D
    means = tuple(torch.empty_like(by_cluster, memory_format=torch.contiguous_format) for _ in sources)
    arrays = [x.detach().contiguous().numpy() for x in (index, valid, by_cluster, sharpness)]
    rows, results = tuple(make_rows(source) for source in sources), tuple(mean.numpy() for mean in means)
    run = partial(_summarise, *arrays, make_rows(route), rows, results)
    clusters = len(by_cluster)
    threads = max(1, min(torch.get_num_threads(), clusters // _CLUSTERS_PER_THREAD))
    bounds = [clusters * i // threads for i in range(threads + 1)]
    if threads == 1:
        run(0, clusters)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(run, bounds[:-1], bounds[1:]))
    return tuple(mean.transpose(0, 1) for mean in means)
