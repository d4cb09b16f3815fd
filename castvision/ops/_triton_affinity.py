"""Step 1 of CAST in Triton: affinities of tokens and clusters, softmax over clusters inside the kernel.

One matrix product of width C per side (queries, keys), accumulated head by head. Up to BLOCK_M clusters are scored in
one go; more take two passes, the first for maximum and sum of the softmax. :func:`affinity` gives a table of scores.
Where that would be too large, :func:`recipe` gives the first pass alone, and the matching makes the second, tile by
tile, whenever it looks at scores.
"""

# ruff: noqa: ANN001, ANN202, PLR0913 - kernels take pointers and sizes, one by one
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from castvision.ops._functions import MASKED
from castvision.ops._triton_attend import LOG2E, LOWEST
from castvision.ops._triton_rows import load_rows, with_unit_stride

BLOCK_N, BLOCK_M, SLICE = 32, 128, 16
"""Tokens and clusters of a tile, and how much of a head is read at a time: wider slices spill."""

_HIDDEN: tl.constexpr = tl.constexpr(MASKED)
_LOG2E: tl.constexpr = tl.constexpr(LOG2E)


class Operands(NamedTuple):
    """What scores are computed from, as kernels take it.

    Attributes:
        q: Queries, (B, N, H, D), the last stride 1.
        k: Keys, likewise.
        surrogates: Surrogate tokens, (H, M, D) fp32.
        phi: (B, N) fp32.
        token_mask: (B, N) bytes, or None.
        heads: H.
        q_b: Stride of q along images; q_n, q_h: along tokens and heads.
        k_b: Stride of k along images; k_n, k_h: along tokens and heads.
    """

    q: Tensor
    k: Tensor
    surrogates: Tensor
    phi: Tensor
    token_mask: Tensor | None
    heads: int
    q_b: int
    q_n: int
    q_h: int
    k_b: int
    k_n: int
    k_h: int


class Recipe(NamedTuple):
    """Scores that are worked out where they are needed.

    Attributes:
        of: What they are computed from.
        totals: Maximum and sum of each token's softmax over clusters, of its query, then of its key, (B, 4, N) fp32.
    """

    of: Operands
    totals: Tensor


@triton.jit
def _real(token_mask, b, rows, inside, N):
    """Which rows hold a real token."""
    real = inside
    if token_mask is not None:
        real = tl.load(token_mask + b * N + rows, mask=inside, other=0) != 0
    return real


@triton.jit
def _logits(
    x, surrogates, rows, real, clusters, x_n, x_h, M, heads,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sum over heads of x S', in powers of two, (rows, clusters); -inf beyond M. Heads are read in parts of BLOCK_D.

    Nothing is read where no row is real.
    """
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    parts = tl.cdiv(D, BLOCK_D)
    for step in range(0, heads * parts * tl.max(real.to(tl.int32), 0)):
        h, first = step // parts, step % parts * BLOCK_D
        tokens = load_rows(x + h * x_h + first, rows, real, x_n, D - first, BLOCK_D).to(tl.float32)
        surrogate = load_rows(surrogates + h * M * D + first, clusters, clusters < M, D, D - first, BLOCK_D)
        total = tl.dot(tokens, tl.trans(surrogate), total, input_precision="tf32x3")
    return tl.where((clusters < M)[None, :], total * _LOG2E, -float("inf"))


@triton.jit
def _both_logits(
    of, b, rows, real, clusters, M, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr
):
    q, k = of.q + b * of.q_b, of.k + b * of.k_b
    return (
        _logits(q, of.surrogates, rows, real, clusters, of.q_n, of.q_h, M, of.heads, D, BLOCK_D, BLOCK_N, BLOCK_M),
        _logits(k, of.surrogates, rows, real, clusters, of.k_n, of.k_h, M, of.heads, D, BLOCK_D, BLOCK_N, BLOCK_M),
    )


@triton.jit
def _running(logits, top, total):
    new = tl.maximum(top, tl.max(logits, 1))
    return new, total * tl.math.exp2(top - new) + tl.sum(tl.math.exp2(logits - new[:, None]), 1)


@triton.jit
def _mix(of, b, rows, inside, real, logits_q, logits_k, top_q, total_q, top_k, total_k, N):
    """Scores from logits."""
    lean = tl.sigmoid(tl.load(of.phi + b * N + rows, mask=inside, other=0.0))
    share_q = tl.math.exp2(logits_q - top_q[:, None]) / total_q[:, None]
    share_k = tl.math.exp2(logits_k - top_k[:, None]) / total_k[:, None]
    return tl.where(real[:, None], share_k + lean[:, None] * (share_q - share_k), _HIDDEN)


@triton.jit
def score_tile(
    of, totals, b, rows, inside, clusters, N, M,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Scores of tokens ``rows`` of image b for ``clusters`` by the recipe (of, totals).

    A token's scores must come out the same, bit for bit, whenever and beside whichever tokens they are worked out:
    else a cluster would compare a member by another score than the token has now, and the partition would not be the
    stable one. So all that uses scores calls this function, with the same BLOCK_D, BLOCK_N and BLOCK_M; heads add up in
    one order; and sums over clusters, whose order a compiler may choose anew in every kernel, are taken once.
    """
    real = _real(of.token_mask, b, rows, inside, N)
    logits_q, logits_k = _both_logits(of, b, rows, real, clusters, M, D, BLOCK_D, BLOCK_N, BLOCK_M)
    at = totals + b * 4 * N + rows
    top_q, total_q = tl.load(at, mask=inside, other=0.0), tl.load(at + N, mask=inside, other=1.0)
    top_k, total_k = tl.load(at + 2 * N, mask=inside, other=0.0), tl.load(at + 3 * N, mask=inside, other=1.0)
    return _mix(of, b, rows, inside, real, logits_q, logits_k, top_q, total_q, top_k, total_k, N)


@triton.jit
def _totals(
    x, surrogates, token_mask, totals, x_b, x_n, x_h, heads, N, M, BLOCKS,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Maximum and sum of each token's softmax over clusters, for one side; totals points to its part of image 0."""
    pid = tl.program_id(0).to(tl.int64)
    b, rows = pid // BLOCKS, pid % BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    real = _real(token_mask, b, rows, rows < N, N)
    x += b * x_b
    top, total = tl.full([BLOCK_N], LOWEST, tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, M, BLOCK_M):
        clusters = start + tl.arange(0, BLOCK_M)
        logits = _logits(x, surrogates, rows, real, clusters, x_n, x_h, M, heads, D, BLOCK_D, BLOCK_N, BLOCK_M)
        top, total = _running(logits, top, total)
    at = totals + b * 4 * N + rows
    tl.store(at, top, mask=rows < N)
    tl.store(at + N, total, mask=rows < N)


@triton.jit
def _affinity(
    of, totals, scores, N, M, BLOCKS,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Without totals all clusters are in one tile."""
    pid = tl.program_id(0).to(tl.int64)
    b, rows = pid // BLOCKS, pid % BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < N
    for start in range(0, M, BLOCK_M):
        clusters = start + tl.arange(0, BLOCK_M)
        if totals is None:
            real = _real(of.token_mask, b, rows, inside, N)
            logits_q, logits_k = _both_logits(of, b, rows, real, clusters, M, D, BLOCK_D, BLOCK_N, BLOCK_M)
            top, total = tl.full([BLOCK_N], LOWEST, tl.float32), tl.zeros([BLOCK_N], tl.float32)
            top_q, total_q = _running(logits_q, top, total)
            top_k, total_k = _running(logits_k, top, total)
            score = _mix(of, b, rows, inside, real, logits_q, logits_k, top_q, total_q, top_k, total_k, N)
        else:
            score = score_tile(of, totals, b, rows, inside, clusters, N, M, D, BLOCK_D, BLOCK_N, BLOCK_M)
        at = scores + (b * N + rows)[:, None] * M + clusters[None, :]
        tl.store(at, score, mask=inside[:, None] & (clusters < M)[None, :])


def affinity(q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, token_mask: Tensor | None) -> Tensor:
    """Scores (B, N, M) fp32 of q, k (B, N, H, D), surrogates (H, M, D), phi (B, N); MASKED for masked tokens."""
    of = _operands(q, k, surrogates, phi, token_mask)
    totals = None if surrogates.shape[1] <= BLOCK_M else _softmax_totals(of)
    scores = torch.empty(*phi.shape, surrogates.shape[1], device=q.device)
    grid, sizes = _launch(of)
    _affinity[grid](of, totals, scores, *sizes, **tile_of(of), num_warps=8, num_stages=2)
    return scores


def recipe(q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, token_mask: Tensor | None) -> Recipe:
    """The same scores, not worked out yet; shapes as in :func:`affinity`."""
    of = _operands(q, k, surrogates, phi, token_mask)
    return Recipe(of, _softmax_totals(of))


def tile_of(of: Operands) -> dict[str, int]:
    """Constants of every kernel that computes scores."""
    block_m = min(BLOCK_M, max(16, triton.next_power_of_2(of.surrogates.shape[1])))
    return {"D": of.q.shape[-1], "BLOCK_D": SLICE, "BLOCK_N": BLOCK_N, "BLOCK_M": block_m}


def _operands(q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, token_mask: Tensor | None) -> Operands:
    q, k = with_unit_stride(q), with_unit_stride(k)
    mask = None if token_mask is None else token_mask.contiguous().view(torch.uint8)
    surrogates, phi = surrogates.float().contiguous(), phi.float().contiguous()
    strides = (*q.stride()[:3], *k.stride()[:3])
    return Operands(q, k, surrogates, phi, mask, q.shape[2], *strides)


def _softmax_totals(of: Operands) -> Tensor:
    batch, num_tokens = of.phi.shape
    totals = torch.empty(batch, 4, num_tokens, device=of.q.device)
    grid, sizes = _launch(of)
    for side, x in enumerate((of.q, of.k)):
        _totals[grid](
            x, of.surrogates, of.token_mask, totals[:, 2 * side], *x.stride()[:3], of.heads, *sizes,
            **tile_of(of), num_warps=8, num_stages=2,
        )  # fmt: skip
    return totals


def _launch(of: Operands) -> tuple[tuple[int], tuple[int, int, int]]:
    """A program per block of tokens; N, M and the blocks of an image."""
    batch, num_tokens = of.phi.shape
    blocks = triton.cdiv(num_tokens, BLOCK_N)
    return (batch * blocks,), (num_tokens, of.surrogates.shape[1], blocks)
