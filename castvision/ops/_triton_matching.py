"""SA Top-K in Triton: deferred acceptance on the device, exactly :func:`._matching.match_greedy`.

Pairs are compared by one 64-bit key, score first, lower token second. Every cluster keeps its members' keys sorted, so
its bar is the last one. A few rounds run in parallel (``wish``: every free token names the best cluster whose bar it
clears; ``choose``: every cluster merges the wishes into its members), then one program per image places what is left,
a batch of tokens at a time, until no token is free: nothing waits for the host. Any order of proposals leads to the
same partition, the unique stable one, so that the number of rounds and the sizes of batches are free.

Scores lie in a table, or no N x M tensor exists and a recipe gives them: every wish then works its token's scores out
anew, tile by tile. So rounds take the free tokens alone, brought together by a sort, and there are more rounds: what
they leave, one multiprocessor works out.
"""

# ruff: noqa: ANN001, ANN202, PLR0913 - kernels take pointers and sizes, one by one
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from castvision.ops._triton_affinity import Operands, Recipe, score_tile, tile_of

ROUNDS, RECIPE_ROUNDS = 4, 24
"""Parallel rounds: even scores leave a few in a thousand tokens after four, skewed ones more. From a recipe a round
costs little once few tokens are free, and far less than what it spares the last program."""

BATCH = 128
"""Wishes that a cluster merges at a time, and tokens that the last program places at a time: by recipe, a tile's."""

SCAN = 1024
"""Tokens whose wishes a cluster looks through at a time."""

Source = tuple[Tensor, None, None] | tuple[None, Operands, Tensor]
"""A table of scores, or a recipe, as kernels take it."""

_LOW: tl.constexpr = tl.constexpr(4294967295)
_EMPTY: tl.constexpr = tl.constexpr(-(2**63))
_FREE: tl.constexpr = tl.constexpr(-1)


@triton.jit
def _ordered(score):
    """Scores as int32 of the same order; NaN below all numbers, -0.0 equal to 0.0."""
    score = tl.where(score == score, score, -float("inf"))
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _key(ordered, token):
    return (ordered.to(tl.int64) << 32) | (token.to(tl.int64) ^ _LOW)


@triton.jit
def _token(key):
    return ((key & _LOW) ^ _LOW).to(tl.int32)


@triton.jit
def _wish(
    scores, of, totals, held, b, tokens, active, N, M, K,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The best cluster whose bar each token clears, the first of equals, and the pair's key; -1 if there is none.

    BLOCK_N tokens of image b; scores is the table (B, N, M), or None for the recipe (of, totals).
    """
    best = tl.full([BLOCK_N], -(2**31), tl.int32)
    choice = tl.full([BLOCK_N], -1, tl.int32)
    for start in range(0, M, BLOCK_M):
        clusters = start + tl.arange(0, BLOCK_M)
        inside = active[:, None] & (clusters < M)[None, :]
        if scores is None:
            score = score_tile(of, totals, b, tokens, active, clusters, N, M, D, BLOCK_D, BLOCK_N, BLOCK_M)
        else:
            score = tl.load(scores + (b * N + tokens)[:, None] * M + clusters[None, :], mask=inside, other=0.0)
        bar = tl.load(held + clusters * K + K - 1, mask=clusters < M, other=_EMPTY)
        ordered = _ordered(score)
        clears = inside & (_key(ordered, tokens[:, None]) > bar[None, :])
        ordered = tl.where(clears, ordered, -(2**31))
        value, place = tl.max(ordered, 1, return_indices=True, return_indices_tie_break_left=True)
        choice = tl.where(value > best, start + place, choice)
        best = tl.maximum(value, best)
    return choice, _key(best, tokens)


@triton.jit
def _ranks(wishes, filled, held, K, COUNT: tl.constexpr, STEP: tl.constexpr):
    """The wishes' keys (COUNT,) and their ranks among wishes and members; places beyond ``filled`` are empty."""
    slot = tl.arange(0, COUNT)
    key = tl.load(wishes + slot, mask=slot < filled, other=_EMPTY)
    rank = tl.zeros([COUNT], tl.int32)
    for start in range(0, COUNT, STEP):
        at = start + tl.arange(0, STEP)
        other = tl.load(wishes + at, mask=at < filled, other=_EMPTY)
        rank += tl.sum((other[None, :] > key[:, None]).to(tl.int32), 1)
    for start in range(0, K, STEP):
        at = start + tl.arange(0, STEP)
        other = tl.load(held + at, mask=at < K, other=_EMPTY)
        rank += tl.sum((other[None, :] > key[:, None]).to(tl.int32), 1)
    return key, rank


@triton.jit
def _push(pending, count, tokens, which):
    """Put tokens on the stack of free ones; returns its new height."""
    ones = which.to(tl.int32)
    tl.store(pending + count + tl.cumsum(ones, 0) - 1, tokens, mask=which)
    return count + tl.sum(ones, 0)


@triton.jit
def _merge(wishes, filled, held, home, pending, count, cluster, K, COUNT: tl.constexpr, STEP: tl.constexpr):
    """Keep the K best of a cluster's members and wishes, sorted. Tokens that lose are free again.

    Free tokens are marked in ``home``, or pushed on ``pending`` where that is given. Members move towards the end, so
    the last block moves first. Returns the stack's height.
    """
    key, rank = _ranks(wishes, filled, held, K, COUNT, STEP)
    steps = tl.cdiv(K, STEP)
    for step in range(0, steps):
        at = (steps - 1 - step) * STEP + tl.arange(0, STEP)
        member = tl.load(held + at, mask=at < K, other=_EMPTY)
        to = at + tl.sum((key[None, :] > member[:, None]).to(tl.int32), 1)
        tl.debug_barrier()
        tl.store(held + to, member, mask=(member != _EMPTY) & (to < K))
        lost = (member != _EMPTY) & (to >= K)
        if pending is None:
            tl.store(home + _token(member), tl.full([STEP], _FREE, tl.int32), mask=lost)
        else:
            count = _push(pending, count, _token(member), lost)
    tl.debug_barrier()
    won = (key != _EMPTY) & (rank < K)
    tl.store(held + rank, key, mask=won)
    if pending is None:
        tl.store(home + _token(key), tl.zeros([COUNT], tl.int32) + cluster, mask=won)
    else:
        count = _push(pending, count, _token(key), (key != _EMPTY) & (rank >= K))
    tl.debug_barrier()
    return count


@triton.jit
def _wish_all(
    scores, of, totals, held, home, order, choice, wish, N, M, K, BLOCKS,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One round, tokens' half: a program per block of tokens, in the order given, or as they are if it is None."""
    pid = tl.program_id(0).to(tl.int64)
    b, place = pid // BLOCKS, (pid % BLOCKS).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = place
    if order is not None:
        tokens = tl.load(order + b * N + place, mask=place < N, other=0).to(tl.int32)
    free = tl.load(home + b * N + tokens, mask=place < N, other=0) == _FREE
    cluster, key = tl.full([BLOCK_N], -1, tl.int32), tl.full([BLOCK_N], 0, tl.int64)
    if tl.sum(free.to(tl.int32), 0) > 0:
        cluster, key = _wish(
            scores, of, totals, held + b * M * K, b, tokens, free, N, M, K, D, BLOCK_D, BLOCK_N, BLOCK_M
        )  # fmt: skip
    tl.store(choice + b * N + place, cluster, mask=place < N)
    tl.store(wish + b * N + place, key, mask=place < N)


@triton.jit
def _choose_all(
    held, home, free, choice, wish, wishes, N, M, K, SCAN: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr
):
    """One round, clusters' half: a program per cluster gathers its wishes and merges them, COUNT at a time.

    Only the first ``free`` (B,) of the N places hold wishes, or all of them if it is None.
    """
    pid = tl.program_id(0).to(tl.int64)
    b, cluster = pid // M, (pid % M).to(tl.int32)
    held += pid * K
    wishes += pid * 2 * SCAN
    places = N
    if free is not None:
        places = tl.load(free + b).to(tl.int32)
    total = tl.full([], 0, tl.int32)
    for start in range(0, places + SCAN, SCAN):  # the last turn finds none and merges what is left
        if (total > SCAN) | (start >= places):
            tl.debug_barrier()
            for first in range(0, total, COUNT):
                filled = tl.minimum(total - first, COUNT)
                _merge(wishes + first, filled, held, home + b * N, None, total, cluster, K, COUNT, STEP)
            total = tl.full([], 0, tl.int32)
        place = start + tl.arange(0, SCAN)
        mine = tl.load(choice + b * N + place, mask=place < places, other=-1) == cluster
        key = tl.load(wish + b * N + place, mask=mine, other=_EMPTY)
        mine = key > tl.load(held + K - 1)
        tl.store(wishes + total + tl.cumsum(mine.to(tl.int32), 0) - 1, key, mask=mine)
        total += tl.sum(mine.to(tl.int32), 0)


@triton.jit
def _place_rest(
    scores, of, totals, held, home, pending, wishes, N, M, K,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
    SCAN: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Place all free tokens of an image: a stack of them, lowest on top, taken a batch of BLOCK_N at a time."""
    b = tl.program_id(0).to(tl.int64)
    held, home, pending, wishes = held + b * M * K, home + b * N, pending + b * N, wishes + b * BLOCK_N
    count = tl.full([], 0, tl.int32)
    for start in range(0, N, SCAN):
        tokens = N - 1 - start - tl.arange(0, SCAN)
        free = tl.load(home + tokens, mask=tokens >= 0, other=0) == _FREE
        count = _push(pending, count, tokens, free)
    slot = tl.arange(0, BLOCK_N)
    while count > 0:
        tl.debug_barrier()
        active = slot < count
        tokens = tl.load(pending + count - 1 - slot, mask=active, other=0)
        count = tl.maximum(count - BLOCK_N, 0)
        choice, key = _wish(
            scores, of, totals, held, b, tokens, active, N, M, K, D, BLOCK_D, BLOCK_N, BLOCK_M
        )  # fmt: skip
        cluster = tl.min(tl.where(choice < 0, M, choice), 0)
        while cluster < M:
            tl.debug_barrier()
            tl.store(wishes + slot, tl.where(choice == cluster, key, _EMPTY))
            tl.debug_barrier()
            count = _merge(wishes, BLOCK_N, held + cluster * K, home, pending, count, cluster, K, BLOCK_N, STEP)
            cluster = tl.min(tl.where(choice <= cluster, M, choice), 0)


def match(scores: Tensor | Recipe, cluster_size: int) -> Tensor:
    """Partition of each image's tokens by their scores, M * K >= N.

    Args:
        scores: The table of them, (B, N, M) fp32, or the recipe of such a table: then none is made.
        cluster_size: K.

    Returns:
        index (B, M, K) int64, members ascending, padding = N.
    """
    if isinstance(scores, Recipe):
        tile = {**tile_of(scores.of), "num_warps": 8, "num_stages": 2}
        return _match((None, *scores), _nowhere(scores.of.phi), scores.of.surrogates.shape[1], cluster_size, tile, tile)
    num_clusters = scores.shape[2]
    tile = {"D": 0, "BLOCK_D": 0, "BLOCK_M": min(64, max(16, triton.next_power_of_2(num_clusters)))}
    rest = {**tile, "BLOCK_N": BATCH, "num_warps": 8}
    home = _nowhere(scores[:, :, 0])
    return _match((scores, None, None), home, num_clusters, cluster_size, {**tile, "BLOCK_N": 64}, rest)


def _nowhere(tokens: Tensor) -> Tensor:
    """Cluster of each of the tokens (B, N): none."""
    return tokens.new_full(tokens.shape, -1, dtype=torch.int32)


def _match(
    source: Source, home: Tensor, num_clusters: int, cluster_size: int, wish_tile: dict[str, int], rest: dict[str, int]
) -> Tensor:
    """home: cluster of each token, (B, N) int32; then constants of the kernels that wish and that place the rest."""
    (batch, num_tokens), by_recipe = home.shape, source[0] is None
    held = home.new_full((batch, num_clusters, cluster_size), -(2**63), dtype=torch.int64)
    choice, pending = torch.empty_like(home), torch.empty_like(home)
    wish = torch.empty_like(home, dtype=torch.int64)
    scan = min(SCAN, max(BATCH, triton.next_power_of_2(num_tokens)))
    wishes = wish.new_empty(batch, num_clusters, 2 * scan)
    sizes = (num_tokens, num_clusters, cluster_size)
    blocks = triton.cdiv(num_tokens, wish_tile["BLOCK_N"])
    order = free = None
    for _ in range(RECIPE_ROUNDS if by_recipe else ROUNDS):
        if by_recipe:
            order, free = home.argsort(dim=1, stable=True), (home < 0).sum(1)
        _wish_all[batch * blocks,](*source, held, home, order, choice, wish, *sizes, blocks, **wish_tile)
        _choose_all[batch * num_clusters,](
            held, home, free, choice, wish, wishes, *sizes, SCAN=scan, COUNT=BATCH, STEP=32, num_warps=8
        )  # fmt: skip
    _place_rest[batch,](*source, held, home, pending, wishes, *sizes, SCAN=scan, STEP=4096 // rest["BLOCK_N"], **rest)
    tokens = 4294967295 - (held & 4294967295)  # an empty slot gives 2^32 - 1
    return tokens.clamp_(max=num_tokens).sort(2)[0]
