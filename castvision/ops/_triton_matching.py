"""SA Top-K in Triton: deferred acceptance on the device, exactly :func:`._matching.match_greedy`.

Pairs are compared by one 64-bit key, score first, lower token second. Every cluster keeps its members' keys sorted, so
its bar is the last one. A few rounds run in parallel (``wish``: every free token names the best cluster whose bar it
clears; ``choose``: every cluster merges the wishes into its members), then one program per image places what is left,
a batch of tokens at a time, until no token is free: nothing waits for the host. Any order of proposals leads to the
same partition, the unique stable one, so that the number of rounds and the sizes of batches are free.
"""

# ruff: noqa: ANN001, ANN202, PLR0913 - kernels take pointers and sizes, one by one
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

import torch
import triton
import triton.language as tl
from torch import Tensor

ROUNDS = 4
"""Parallel rounds: even scores leave a few in a thousand tokens after four, skewed ones more."""

BATCH = 128
"""Tokens that the last program places at a time, and wishes that a cluster reads in a round: twice as many."""

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
def _wish(scores, held, tokens, active, M, K, BLOCK_M: tl.constexpr, BATCH: tl.constexpr):
    """The best cluster whose bar each token clears, the first of equals, and the pair's key; -1 if there is none."""
    best = tl.full([BATCH], -(2**31), tl.int32)
    choice = tl.full([BATCH], -1, tl.int32)
    for start in range(0, M, BLOCK_M):
        clusters = start + tl.arange(0, BLOCK_M)
        inside = active[:, None] & (clusters < M)[None, :]
        score = tl.load(scores + tokens.to(tl.int64)[:, None] * M + clusters[None, :], mask=inside, other=0.0)
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
def _wish_all(scores, held, home, choice, wish, N, M, K, BLOCKS, BLOCK_M: tl.constexpr, BATCH: tl.constexpr):
    """One round, tokens' half: a program per block of tokens."""
    pid = tl.program_id(0).to(tl.int64)
    b, tokens = pid // BLOCKS, (pid % BLOCKS).to(tl.int32) * BATCH + tl.arange(0, BATCH)
    free = tl.load(home + b * N + tokens, mask=tokens < N, other=0) == _FREE
    cluster, key = tl.full([BATCH], -1, tl.int32), tl.full([BATCH], 0, tl.int64)
    if tl.sum(free.to(tl.int32), 0) > 0:
        cluster, key = _wish(scores + b * N * M, held + b * M * K, tokens, free, M, K, BLOCK_M, BATCH)
    tl.store(choice + b * N + tokens, cluster, mask=tokens < N)
    tl.store(wish + b * N + tokens, key, mask=tokens < N)


@triton.jit
def _choose_all(held, home, choice, wish, wishes, N, M, K, SCAN: tl.constexpr, COUNT: tl.constexpr, STEP: tl.constexpr):
    """One round, clusters' half: a program per cluster reads its first COUNT wishes; others come again."""
    pid = tl.program_id(0).to(tl.int64)
    b, cluster = pid // M, (pid % M).to(tl.int32)
    wishes += pid * COUNT
    total = tl.full([], 0, tl.int32)
    for start in range(0, N, SCAN):
        tokens = start + tl.arange(0, SCAN)
        mine = tl.load(choice + b * N + tokens, mask=tokens < N, other=-1) == cluster
        place = total + tl.cumsum(mine.to(tl.int32), 0) - 1
        taken = mine & (place < COUNT)
        tl.store(wishes + place, tl.load(wish + b * N + tokens, mask=taken, other=0), mask=taken)
        total += tl.sum(mine.to(tl.int32), 0)
    tl.debug_barrier()
    if total > 0:
        _merge(wishes, total, held + pid * K, home + b * N, None, total, cluster, K, COUNT, STEP)


@triton.jit
def _place_rest(
    scores, held, home, pending, wishes, N, M, K,
    SCAN: tl.constexpr, BLOCK_M: tl.constexpr, BATCH: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Place all free tokens of an image: a stack of them, lowest on top, taken a batch at a time."""
    b = tl.program_id(0).to(tl.int64)
    scores, held, home, pending, wishes = (
        scores + b * N * M, held + b * M * K, home + b * N, pending + b * N, wishes + b * BATCH,
    )  # fmt: skip
    count = tl.full([], 0, tl.int32)
    for start in range(0, N, SCAN):
        tokens = N - 1 - start - tl.arange(0, SCAN)
        free = tl.load(home + tokens, mask=tokens >= 0, other=0) == _FREE
        count = _push(pending, count, tokens, free)
    slot = tl.arange(0, BATCH)
    while count > 0:
        tl.debug_barrier()
        active = slot < count
        tokens = tl.load(pending + count - 1 - slot, mask=active, other=0)
        count = tl.maximum(count - BATCH, 0)
        choice, key = _wish(scores, held, tokens, active, M, K, BLOCK_M, BATCH)
        cluster = tl.min(tl.where(choice < 0, M, choice), 0)
        while cluster < M:
            tl.debug_barrier()
            tl.store(wishes + slot, tl.where(choice == cluster, key, _EMPTY))
            tl.debug_barrier()
            count = _merge(wishes, BATCH, held + cluster * K, home, pending, count, cluster, K, BATCH, STEP)
            cluster = tl.min(tl.where(choice <= cluster, M, choice), 0)


def match(scores: Tensor, cluster_size: int) -> Tensor:
    """Partition of each image's tokens by their scores (B, N, M) fp32, M * K >= N.

    Returns:
        index (B, M, K) int64, members ascending, padding = N.
    """
    batch, num_tokens, num_clusters = scores.shape
    device = scores.device
    held = torch.full((batch, num_clusters, cluster_size), -(2**63), dtype=torch.int64, device=device)
    home = torch.full((batch, num_tokens), -1, dtype=torch.int32, device=device)
    choice, pending = torch.empty_like(home), torch.empty_like(home)
    wish = torch.empty(batch, num_tokens, dtype=torch.int64, device=device)
    wishes = torch.empty(batch, num_clusters, 2 * BATCH, dtype=torch.int64, device=device)
    sizes = (num_tokens, num_clusters, cluster_size)
    block_m = min(64, max(16, triton.next_power_of_2(num_clusters)))
    step, scan = 32, min(2048, max(16, triton.next_power_of_2(num_tokens)))
    blocks = triton.cdiv(num_tokens, 64)
    for _ in range(ROUNDS):
        _wish_all[batch * blocks,](scores, held, home, choice, wish, *sizes, blocks, BLOCK_M=block_m, BATCH=64)
        _choose_all[batch * num_clusters,](
            held, home, choice, wish, wishes, *sizes, SCAN=scan, COUNT=2 * BATCH, STEP=step, num_warps=8
        )  # fmt: skip
    _place_rest[batch,](
        scores, held, home, pending, wishes, *sizes, SCAN=scan, BLOCK_M=block_m, BATCH=BATCH, STEP=step, num_warps=8
    )  # fmt: skip
    tokens = 4294967295 - (held & 4294967295)  # an empty slot gives 2^32 - 1
    return tokens.clamp_(max=num_tokens).sort(2)[0]
