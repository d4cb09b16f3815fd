"""Step 1 of CAST in Triton: affinities of tokens and clusters, softmax over clusters inside the kernel.

One matrix product of width C per side (queries, keys), accumulated head by head. Up to BLOCK_M clusters are scored in
one go; more take two passes, the first for maximum and sum of the softmax.
"""

# ruff: noqa: ANN001, ANN202, PLR0913 - kernels take pointers and sizes, one by one
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

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


@triton.jit
def _logits(
    x, surrogates, rows, inside, clusters, x_n, x_h, M, H,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Sum over heads of x S', in powers of two, (rows, clusters); -inf beyond M. Heads are read in parts of BLOCK_D."""
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    parts = tl.cdiv(D, BLOCK_D)
    for step in range(0, H * parts):
        h, first = step // parts, step % parts * BLOCK_D
        tokens = load_rows(x + h * x_h + first, rows, inside, x_n, D - first, BLOCK_D).to(tl.float32)
        surrogate = load_rows(surrogates + h * M * D + first, clusters, clusters < M, D, D - first, BLOCK_D)
        total = tl.dot(tokens, tl.trans(surrogate), total, input_precision="tf32x3")
    return tl.where((clusters < M)[None, :], total * _LOG2E, -float("inf"))


@triton.jit
def _running(logits, top, total):
    new = tl.maximum(top, tl.max(logits, 1))
    return new, total * tl.math.exp2(top - new) + tl.sum(tl.math.exp2(logits - new[:, None]), 1)


@triton.jit
def _affinity(
    q, k, surrogates, phi, token_mask, scores, q_b, q_n, q_h, k_b, k_n, k_h, N, M, H, BLOCKS,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    b, rows = pid // BLOCKS, pid % BLOCKS * BLOCK_N + tl.arange(0, BLOCK_N)
    q, k, inside = q + b * q_b, k + b * k_b, rows < N
    lean = tl.sigmoid(tl.load(phi + b * N + rows, mask=inside, other=0.0))
    top_q, top_k = tl.full([BLOCK_N], LOWEST, tl.float32), tl.full([BLOCK_N], LOWEST, tl.float32)
    total_q, total_k = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    if not ONE:
        for start in range(0, M, BLOCK_M):
            clusters = start + tl.arange(0, BLOCK_M)
            logits = _logits(q, surrogates, rows, inside, clusters, q_n, q_h, M, H, D, BLOCK_D, BLOCK_N, BLOCK_M)
            top_q, total_q = _running(logits, top_q, total_q)
            logits = _logits(k, surrogates, rows, inside, clusters, k_n, k_h, M, H, D, BLOCK_D, BLOCK_N, BLOCK_M)
            top_k, total_k = _running(logits, top_k, total_k)
    for start in range(0, M, BLOCK_M):
        clusters = start + tl.arange(0, BLOCK_M)
        logits_q = _logits(q, surrogates, rows, inside, clusters, q_n, q_h, M, H, D, BLOCK_D, BLOCK_N, BLOCK_M)
        logits_k = _logits(k, surrogates, rows, inside, clusters, k_n, k_h, M, H, D, BLOCK_D, BLOCK_N, BLOCK_M)
        if ONE:
            top_q, total_q = _running(logits_q, top_q, total_q)
            top_k, total_k = _running(logits_k, top_k, total_k)
        share_q = tl.math.exp2(logits_q - top_q[:, None]) / total_q[:, None]
        share_k = tl.math.exp2(logits_k - top_k[:, None]) / total_k[:, None]
        score = share_k + lean[:, None] * (share_q - share_k)
        if token_mask is not None:
            real = tl.load(token_mask + b * N + rows, mask=inside, other=0) != 0
            score = tl.where(real[:, None], score, _HIDDEN)
        at = scores + (b * N + rows)[:, None] * M + clusters[None, :]
        tl.store(at, score, mask=inside[:, None] & (clusters < M)[None, :])


def affinity(q: Tensor, k: Tensor, surrogates: Tensor, phi: Tensor, token_mask: Tensor | None) -> Tensor:
    """Scores (B, N, M) fp32 of q, k (B, N, H, D), surrogates (H, M, D), phi (B, N); MASKED for masked tokens."""
    q, k = with_unit_stride(q), with_unit_stride(k)
    batch, num_tokens, heads, head_dim = q.shape
    num_clusters = surrogates.shape[1]
    scores = torch.empty(batch, num_tokens, num_clusters, device=q.device)
    block_m = min(BLOCK_M, max(16, triton.next_power_of_2(num_clusters)))
    blocks = triton.cdiv(num_tokens, BLOCK_N)
    _affinity[batch * blocks,](
        q, k, surrogates.float().contiguous(), phi.float().contiguous(),
        None if token_mask is None else token_mask.contiguous().view(torch.uint8), scores,
        *q.stride()[:3], *k.stride()[:3], num_tokens, num_clusters, heads, blocks,
        D=head_dim, BLOCK_D=SLICE, BLOCK_N=BLOCK_N, BLOCK_M=block_m,
        ONE=num_clusters <= block_m, num_warps=8, num_stages=2,
    )  # fmt: skip
    return scores
