"""Attention over a partition in Triton, forward: summaries of clusters, then one attention call.

Two kernels. ``summarise``: a program per cluster and head reads the members once and leaves their mean key and value.
``attend``: a program per block of a cluster's queries streams over [prefix ; members ; summaries] with a running
softmax, and writes each output to its token's row: a partition, so that no two programs share a row.

The paper's mixing is the same stream with one turn in it. When prefix and members are through, the running maximum is
moved so that all they sum up to counts as one term, by the logit of the cluster's own surrogate. What follows are the
other surrogates as keys with the summaries as values, and the routing query, whose logits gate(phi) sharpens.
"""

# ruff: noqa: ANN001, ANN202, PLR0913 - kernels take pointers and sizes, one by one
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from castvision.ops._problem import Problem
from castvision.ops._triton_rows import (
    fit,
    load_members,
    load_row,
    load_rows,
    pad,
    query_tiles,
    split_program,
    store_rows,
    with_unit_stride,
)

LOG2E = 1.4426950408889634
LOWEST: tl.constexpr = tl.constexpr(-1e30)
"""Start of a running maximum: finite, so that a difference of two is never NaN."""


@triton.jit
def gate(x):
    """softplus(x) + 1 without overflow."""
    return tl.maximum(x, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(x))) + 1.0


@triton.jit
def _summarise(
    k, v, k_route, surrogates, phi, index, token_mask, keys, values, wide_keys, wide_values, share_lse, log_count,
    k_b, k_n, k_h, v_b, v_n, v_h, r_b, r_n, r_h, scale, N, M, K, H,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_K: tl.constexpr, OWN_ROUTE: tl.constexpr,
):  # fmt: skip
    b, c, _block, h = split_program(M, H, 1)
    k, v, k_route = k + b * k_b + h * k_h, v + b * v_b + h * v_h, k_route + b * r_b + h * r_h
    index, phi = index + (b * M + c) * K, phi + b * N
    if token_mask is not None:
        token_mask += b * N
    column = tl.arange(0, BLOCK_D)
    surrogate = load_row(surrogates + (h * M + c) * D, D, BLOCK_D)
    top, total, count = tl.full([], LOWEST, tl.float32), tl.full([], 0.0, tl.float32), tl.full([], 0, tl.int32)
    mean_k, mean_v = tl.zeros([BLOCK_D], tl.float32), tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, K, BLOCK_K):
        ids, _present, real = load_members(index, token_mask, start, K, N, BLOCK_K)
        route = load_rows(k_route, ids, real, r_n, D, BLOCK_D).to(tl.float32)
        sharpness = gate(-tl.load(phi + ids, mask=real, other=0.0))
        logits = tl.sum(route * surrogate[None, :], 1) * (sharpness * scale)
        logits = tl.where(real, logits, -float("inf"))
        new = tl.maximum(top, tl.max(logits, 0))
        p, shrink = tl.exp2(logits - new), tl.exp2(top - new)
        value = load_rows(v, ids, real, v_n, D, BLOCK_D).to(tl.float32)
        if keys is not None:
            key = load_rows(k, ids, real, k_n, D, BLOCK_D).to(tl.float32) if OWN_ROUTE else route
            mean_k = mean_k * shrink + tl.sum(p[:, None] * key, 0)
        mean_v = mean_v * shrink + tl.sum(p[:, None] * value, 0)
        total, top = total * shrink + tl.sum(p, 0), new
        count += tl.sum(real.to(tl.int32), 0)
    total = tl.where(count > 0, total, 1.0)
    mean_k, mean_v = mean_k / total, mean_v / total
    at = (b * H + h) * M + c
    to, inside = at * D + column, column < D
    if keys is not None:
        tl.store(keys + to, mean_k.to(keys.dtype.element_ty), mask=inside)
        tl.store(wide_keys + to, mean_k, mask=inside)
    tl.store(values + to, mean_v.to(values.dtype.element_ty), mask=inside)
    tl.store(wide_values + to, mean_v, mask=inside)
    tl.store(share_lse + at, top + tl.log2(total))
    if h == 0:
        logarithm = tl.log2(tl.maximum(count, 1).to(tl.float32)) if keys is not None else 0.0
        tl.store(log_count + b * M + c, tl.where(count > 0, logarithm, -float("inf")))


@triton.jit
def _see(q, key, value, bias, scale, top, total, out, PRECISION: tl.constexpr):
    """Add one block of keys to the running softmax; bias per key in powers of two, -inf hides it.

    scale is one number or one per query, (rows, 1).
    """
    logits = tl.dot(q, tl.trans(key), input_precision=PRECISION) * scale + bias[None, :]
    new = tl.maximum(top, tl.max(logits, 1))
    p, shrink = tl.exp2(logits - new[:, None]), tl.exp2(top - new)
    out = tl.dot(p.to(value.dtype), value, out * shrink[:, None], input_precision=PRECISION)
    return new, total * shrink + tl.sum(p, 1), out


@triton.jit
def shared_bias(log_count, ids, count, own):
    """Bias of summaries ``ids`` of an image's ``count``: log_count, -inf for the own one; log_count None: prefix."""
    bias = tl.where(ids < count, 0.0, -float("inf"))
    if log_count is not None:
        bias = tl.load(log_count + ids, mask=(ids < count) & (ids != own), other=-float("inf"))
    return bias


@triton.jit
def own_logit(query, surrogate, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Products of routing queries (rows, BLOCK_D) and the surrogate of their cluster: of what tl.dot takes, in fp32."""
    return tl.sum(query.to(tl.float32) * load_row(surrogate, D, BLOCK_D)[None, :], 1)


@triton.jit
def _see_shared(
    q, keys, values, log_count, count, own, scale, top, total, out,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add keys that every cluster sees, (count, D) contiguous: the prefix, or the summaries but the own one."""
    for start in range(0, count, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        key = load_rows(keys, ids, ids < count, D, D, BLOCK_D)
        value = load_rows(values, ids, ids < count, D, D, BLOCK_D)
        bias = shared_bias(log_count, ids, count, own)
        top, total, out = _see(q, key, value, bias, scale, top, total, out, PRECISION)
    return top, total, out


@triton.jit
def _attend(
    q, k, v, q_route, phi, prefix_k, prefix_v, keys, values, log_count, index, token_mask, out, lse,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, r_b, r_n, r_h, scale, N, M, K, P, H, BLOCKS,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b, c, block, h = split_program(M, H, BLOCKS)
    q, k, v = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h
    index = index + (b * M + c) * K
    if token_mask is not None:
        token_mask += b * N
    rows, present, real = load_members(index, token_mask, block * BLOCK_Q, K, N, BLOCK_Q)
    if phi is not None:
        q_route += b * r_b + h * r_h
        sharpness = gate(tl.load(phi + b * N + rows, mask=real, other=0.0)) * scale
        query = load_rows(q_route, rows, real, r_n, D, BLOCK_D)
        own = own_logit(query, keys + ((b * H + h) * M + c) * D, D, BLOCK_D) * sharpness
    query = load_rows(q, rows, real, q_n, D, BLOCK_D)
    top = tl.full([BLOCK_Q], LOWEST, tl.float32)
    total, mean = tl.zeros([BLOCK_Q], tl.float32), tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    if prefix_k is not None:
        at = (b * H + h) * P * D
        top, total, mean = _see_shared(
            query, prefix_k + at, prefix_v + at, None, P, 0, scale, top, total, mean, D, BLOCK_D, BLOCK_P, PRECISION
        )
    for start in range(0, K, BLOCK_K):
        ids, _filled, seen = load_members(index, token_mask, start, K, N, BLOCK_K)
        key, value = load_rows(k, ids, seen, k_n, D, BLOCK_D), load_rows(v, ids, seen, v_n, D, BLOCK_D)
        bias = tl.where(seen, 0.0, -float("inf"))
        top, total, mean = _see(query, key, value, bias, scale, top, total, mean, PRECISION)
    if phi is not None:
        query = load_rows(q_route, rows, real, r_n, D, BLOCK_D)
        top, scale = own - tl.log2(tl.where(real, total, 1.0)), sharpness[:, None]
    if keys is not None:
        at = (b * H + h) * M * D
        top, total, mean = _see_shared(
            query, keys + at, values + at, log_count + b * M, M, c, scale, top, total, mean,
            D, BLOCK_D, BLOCK_K, PRECISION,
        )  # fmt: skip
    mean = tl.where(real[:, None], mean / tl.where(real, total, 1.0)[:, None], 0.0)
    store_rows(out + b * N * H * D + h * D, rows, present, H * D, mean, D, BLOCK_D)
    logarithm = tl.where(real, top + tl.log2(tl.where(real, total, 1.0)), float("inf"))
    tl.store(lse + (b * N + rows) * H + h, logarithm, mask=present)


class Summary(NamedTuple):
    """Summaries of clusters, and what the backward needs of them.

    Attributes:
        keys: Mean keys, (B, H, M, D), in the operands' dtype; the paper's mixing: the surrogates.
        values: Mean values, likewise.
        wide_keys: Mean keys in fp32; None for the paper's mixing, which has none.
        wide_values: Mean values in fp32.
        share_lse: Log2-sum of the members' shares before normalisation, (B, H, M).
        log_count: Log2 n_c (the paper's mixing: 0), -inf for a cluster without a real token, (B, M).
    """

    keys: Tensor
    values: Tensor
    wide_keys: Tensor | None
    wide_values: Tensor
    share_lse: Tensor
    log_count: Tensor


def summarise(problem: Problem) -> Summary:
    """One key and value of every cluster."""
    k, v, route = (with_unit_stride(x) for x in (problem.k, problem.v, problem.k_route))
    shape = (problem.batch, problem.heads, problem.num_clusters, problem.head_dim)
    values = torch.empty(shape, dtype=problem.dtype, device=k.device)
    wide_values = torch.empty(shape, device=k.device)
    keys, wide_keys = (torch.empty_like(values), torch.empty_like(wide_values)) if problem.joint else (None, None)
    surrogates = problem.surrogates.contiguous()
    share_lse = torch.empty(shape[:3], device=k.device)
    log_count = torch.empty(shape[0], shape[2], device=k.device)
    block_d = pad(problem.head_dim)
    _summarise[problem.batch * problem.num_clusters * problem.heads,](
        k, v, route, surrogates, problem.phi.contiguous(), problem.index, mask_bytes(problem),
        keys, values, wide_keys, wide_values, share_lse, log_count,
        *k.stride()[:3], *v.stride()[:3], *route.stride()[:3], problem.options.scale * LOG2E,
        problem.num_tokens, problem.num_clusters, problem.cluster_size, problem.heads,
        D=problem.head_dim, BLOCK_D=block_d, BLOCK_K=fit(problem.cluster_size, 2048 // block_d),
        OWN_ROUTE=problem.k_route is not problem.k,
    )  # fmt: skip
    if keys is None:
        keys = surrogates.expand(shape).contiguous()
    return Summary(keys, values, wide_keys, wide_values, share_lse, log_count)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) and log2-sum-exp (B, N, H) fp32, +inf for masked tokens."""
    return attend(problem, summarise(problem) if problem.options.summaries else None)


def attend(problem: Problem, summary: Summary | None) -> tuple[Tensor, Tensor]:
    """As :func:`forward`; without summaries every token sees prefix and members alone, with either mixing."""
    q, k, v = (with_unit_stride(x) for x in (problem.q, problem.k, problem.v))
    mixes = summary is not None and not problem.joint
    route, phi = (with_unit_stride(problem.q_route), problem.phi.contiguous()) if mixes else (None, None)
    shape = (problem.batch, problem.num_tokens, problem.heads, problem.head_dim)
    out = torch.empty(shape, dtype=problem.dtype, device=q.device)
    lse = torch.empty(shape[:3], device=q.device)
    tiles = query_tiles(q, problem.cluster_size, problem.cluster_size)
    blocks = triton.cdiv(problem.cluster_size, tiles.rows)
    _attend[problem.batch * problem.num_clusters * blocks * problem.heads,](
        q, k, v, route, phi, *prefix_rows(problem), *summary_operands(summary), problem.index, mask_bytes(problem),
        out, lse, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *(q if route is None else route).stride()[:3],
        problem.options.scale * LOG2E,
        problem.num_tokens, problem.num_clusters, problem.cluster_size, problem.num_prefix, problem.heads, blocks,
        D=problem.head_dim, BLOCK_D=tiles.block_d, BLOCK_Q=tiles.rows, BLOCK_K=tiles.step, BLOCK_P=16,
        PRECISION=tiles.precision, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return out, lse


def summary_operands(summary: Summary | None) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Keys, values and log counts, or nothing."""
    return (None, None, None) if summary is None else (summary.keys, summary.values, summary.log_count)


def prefix_rows(problem: Problem) -> tuple[Tensor | None, Tensor | None]:
    """Prefix keys and values, (B, H, P, D) contiguous, or nothing."""
    if problem.prefix_k is None or problem.prefix_v is None:
        return None, None
    return problem.prefix_k.contiguous(), problem.prefix_v.contiguous()


def mask_bytes(problem: Problem) -> Tensor | None:
    """The token mask as bytes, (B, N): Triton reads no bools."""
    return None if problem.token_mask is None else problem.token_mask.contiguous().view(torch.uint8)
