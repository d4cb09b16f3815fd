"""Joint mixing over a partition in Triton, backward: recomputed from operands and log-sum-exp, without atomics.

The paper's mixing (:mod:`._triton_surrogate`) uses the same kernels.

    1. ``query_gradient``    per block of a cluster's queries: dq, and delta = sum(out * grad) and the token's cluster
    2. ``shared_gradient``   per block of summaries (and of prefix keys) and span of tokens: partial dk, dv, which torch
                             then sums in a fixed order
    3. ``member_gradient``   per block of a cluster's members: dk, dv of the attention, plus what flows back through the
                             cluster's summary, to k, v, phi (partial per head) and the surrogate (partial per block)

Each row has one writer, so that gradients repeat bit by bit.
"""

# ruff: noqa: ANN001, ANN202, PLR0913 - kernels take pointers and sizes, one by one
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from castvision.ops._problem import Problem
from castvision.ops._triton_attend import (
    LOG2E,
    Summary,
    gate,
    mask_bytes,
    prefix_rows,
    shared_bias,
    summarise,
    summary_operands,
)
from castvision.ops._triton_rows import (
    key_tiles,
    load_members,
    load_row,
    load_rows,
    query_tiles,
    split_program,
    store_row,
    store_rows,
    with_unit_stride,
)

UNUSED: dict[str, Tensor | None] = dict.fromkeys(("q_route", "k_route", "phi", "surrogates", "prefix_k", "prefix_v"))
"""Gradients of the operands that a call may lack or not use."""

MOST_SPANS = 32
"""Spans of tokens that the gradient of summaries is summed over: parallel work, against fp32 partial sums."""


@triton.jit
def _weights(a, b, x, y, offset, delta, scale, PRECISION: tl.constexpr):
    """Weights p = 2^(a b' scale + offset) and the gradient of a b' scale, p (x y' - delta); scale may be a vector."""
    p = tl.math.exp2(tl.dot(a, tl.trans(b), input_precision=PRECISION) * scale + offset)
    return p, p * (tl.dot(x, tl.trans(y), input_precision=PRECISION) - delta)


@triton.jit
def _query_gradient(
    q, k, v, prefix_k, prefix_v, keys, values, log_count, index, token_mask, grad, out, more, lse, dq, delta, home,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, g_b, g_n, g_h, scale, log2_scale, N, M, K, P, H, BLOCKS,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_P: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    b, c, block, h = split_program(M, H, BLOCKS)
    k, v, index = k + b * k_b + h * k_h, v + b * v_b + h * v_h, index + (b * M + c) * K
    if token_mask is not None:
        token_mask += b * N
    rows, present, real = load_members(index, token_mask, block * BLOCK_Q, K, N, BLOCK_Q)
    query = load_rows(q + b * q_b + h * q_h, rows, real, q_n, D, BLOCK_D)
    dout = load_rows(grad + b * g_b + h * g_h, rows, real, g_n, D, BLOCK_D)
    at = (b * N + rows) * H + h
    if out is not None:
        result = load_rows(out + b * N * H * D + h * D, rows, real, H * D, D, BLOCK_D)
        product = tl.sum(dout.to(tl.float32) * result.to(tl.float32), 1)
        tl.store(delta + at, product, mask=present)
        tl.store(home + b * N + rows, tl.zeros([BLOCK_Q], tl.int32) + c.to(tl.int32), mask=present & (h == 0))
    else:
        product = tl.load(delta + at, mask=real, other=0.0)
    minus_lse = -tl.load(lse + at, mask=real, other=float("inf"))[:, None]
    total = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    if prefix_k is not None:
        at = (b * H + h) * P * D
        total = query_shared(
            query, dout, prefix_k + at, prefix_v + at, None, P, 0, minus_lse, product[:, None], log2_scale, total,
            D, BLOCK_D, BLOCK_P, PRECISION,
        )  # fmt: skip
    for start in range(0, K, BLOCK_K):
        ids, _filled, seen = load_members(index, token_mask, start, K, N, BLOCK_K)
        key, value = load_rows(k, ids, seen, k_n, D, BLOCK_D), load_rows(v, ids, seen, v_n, D, BLOCK_D)
        offset = tl.where(seen, 0.0, -float("inf"))[None, :] + minus_lse
        _p, ds = _weights(query, key, dout, value, offset, product[:, None], log2_scale, PRECISION)
        total = tl.dot(ds.to(key.dtype), key, total, input_precision=PRECISION)
    if keys is not None:
        at = (b * H + h) * M * D
        total = query_shared(
            query, dout, keys + at, values + at, log_count + b * M, M, c, minus_lse, product[:, None], log2_scale,
            total, D, BLOCK_D, BLOCK_K, PRECISION,
        )  # fmt: skip
    total *= scale
    if more is not None:
        total += load_rows(more + b * N * H * D + h * D, rows, real, H * D, D, BLOCK_D).to(tl.float32)
    store_rows(dq + b * N * H * D + h * D, rows, present, H * D, total, D, BLOCK_D)


@triton.jit
def query_shared(
    query, dout, keys, values, log_count, count, own, minus_lse, delta, log2_scale, total,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add the part of dq / scale that comes through the prefix or the summaries; log2_scale may be (rows, 1)."""
    for start in range(0, count, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        key = load_rows(keys, ids, ids < count, D, D, BLOCK_D)
        value = load_rows(values, ids, ids < count, D, D, BLOCK_D)
        offset = shared_bias(log_count, ids, count, own)[None, :] + minus_lse
        _p, ds = _weights(query, key, dout, value, offset, delta, log2_scale, PRECISION)
        total = tl.dot(ds.to(key.dtype), key, total, input_precision=PRECISION)
    return total


@triton.jit
def _shared_gradient(
    q, phi, keys, values, log_count, grad, lse, delta, home, part,
    q_b, q_n, q_h, g_b, g_n, g_h, scale, log2_scale, N, T, H, TILES, SPANS, span, half,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Partial dk, dv of T keys that every cluster sees, over one span of tokens; part (2, SPANS, B, H, T, D).

    With phi its gate sharpens the logits.
    """
    b, piece, tile, h = split_program(SPANS, H, TILES)
    q, grad = q + b * q_b + h * q_h, grad + b * g_b + h * g_h
    ids = tile * BLOCK_T + tl.arange(0, BLOCK_T)
    at = (b * H + h) * T * D
    key = load_rows(keys + at, ids, ids < T, D, D, BLOCK_D)
    value = load_rows(values + at, ids, ids < T, D, D, BLOCK_D)
    bias = shared_bias(None if log_count is None else log_count + b * T, ids, T, -1)[:, None]
    dk, dv = tl.zeros([BLOCK_T, BLOCK_D], tl.float32), tl.zeros([BLOCK_T, BLOCK_D], tl.float32)
    first = (piece * span).to(tl.int32)
    last = tl.minimum(first + span, N)
    for start in range(first, last, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        state = (b * N + rows) * H + h
        log_total = tl.load(lse + state, mask=rows < last, other=float("inf"))
        real = log_total < float("inf")
        product = tl.load(delta + state, mask=real, other=0.0)
        query, dout = load_rows(q, rows, real, q_n, D, BLOCK_D), load_rows(grad, rows, real, g_n, D, BLOCK_D)
        offset = bias - log_total[None, :]
        if log_count is not None:
            cluster = tl.load(home + b * N + rows, mask=real, other=-1)
            offset = tl.where(ids[:, None] == cluster[None, :], -float("inf"), offset)
        sharpness = 1.0
        if phi is not None:
            sharpness = gate(tl.load(phi + b * N + rows, mask=real, other=0.0))[None, :]
        p, ds = _weights(key, query, value, dout, offset, product[None, :], log2_scale * sharpness, PRECISION)
        ds *= sharpness
        dv = tl.dot(p.to(dout.dtype), dout, dv, input_precision=PRECISION)
        dk = tl.dot(ds.to(query.dtype), query, dk, input_precision=PRECISION)
    part += (piece * (tl.num_programs(0) // (H * TILES * SPANS)) * H + b * H + h) * T * D
    store_rows(part, ids, ids < T, D, dk * scale, D, BLOCK_D)
    store_rows(part + half, ids, ids < T, D, dv, D, BLOCK_D)


@triton.jit
def _through_summary(
    route, real, surrogate, lean, log_share, dp, shift, scale, log2_scale
):  # fmt: skip
    """Shares p of members in their cluster's summary, and the gradients of (route . surrogate) and of phi.

    dp is the gradient of p, shift its mean by p.
    """
    raw = tl.sum(route.to(tl.float32) * surrogate[None, :], 1)
    sharpness = gate(-lean)
    p = tl.math.exp2(tl.where(real, raw * sharpness * log2_scale - log_share, -float("inf")))
    da = p * (dp - shift) * scale
    return p, da * sharpness, -da * raw * tl.sigmoid(-lean)


@triton.jit
def _member_gradient(
    q, k, v, k_route, surrogates, phi, index, token_mask, grad, lse, delta,
    mean_k, mean_v, dmean_k, dmean_v, share_lse, dk, dv, dk_route, dphi, dsurrogates,
    q_b, q_n, q_h, k_b, k_n, k_h, v_b, v_n, v_h, r_b, r_n, r_h, g_b, g_n, g_h,
    scale, log2_scale, N, M, K, H, BLOCKS,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b, c, block, h = split_program(M, H, BLOCKS)
    q, grad, index = q + b * q_b + h * q_h, grad + b * g_b + h * g_h, index + (b * M + c) * K
    token_mask = None if token_mask is None else token_mask + b * N
    rows, present, real = load_members(index, token_mask, block * BLOCK_K, K, N, BLOCK_K)
    key = load_rows(k + b * k_b + h * k_h, rows, real, k_n, D, BLOCK_D)
    value = load_rows(v + b * v_b + h * v_h, rows, real, v_n, D, BLOCK_D)
    out = b * N * H * D + h * D
    grad_k, grad_v = tl.zeros([BLOCK_K, BLOCK_D], tl.float32), tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for start in range(0, K, BLOCK_Q):
        ids, _filled, seen = load_members(index, token_mask, start, K, N, BLOCK_Q)
        query, dout = load_rows(q, ids, seen, q_n, D, BLOCK_D), load_rows(grad, ids, seen, g_n, D, BLOCK_D)
        state = (b * N + ids) * H + h
        product = tl.load(delta + state, mask=seen, other=0.0)
        hidden = tl.where(real, 0.0, -float("inf"))[:, None]
        offset = hidden - tl.load(lse + state, mask=seen, other=float("inf"))[None, :]
        p, ds = _weights(key, query, value, dout, offset, product[None, :], log2_scale, PRECISION)
        grad_v = tl.dot(p.to(dout.dtype), dout, grad_v, input_precision=PRECISION)
        grad_k = tl.dot(ds.to(query.dtype), query, grad_k, input_precision=PRECISION)
    grad_k *= scale
    if mean_v is not None:
        at = ((b * H + h) * M + c) * D
        to_v = load_row(dmean_v + at, D, BLOCK_D)
        dp, shift = tl.sum(value.to(tl.float32) * to_v[None, :], 1), load_row(mean_v + at, D, BLOCK_D) * to_v
        to_k = tl.zeros([BLOCK_D], tl.float32)
        if mean_k is not None:
            to_k = load_row(dmean_k + at, D, BLOCK_D)
            dp += tl.sum(key.to(tl.float32) * to_k[None, :], 1)
            shift += load_row(mean_k + at, D, BLOCK_D) * to_k
        surrogate = load_row(surrogates + (h * M + c) * D, D, BLOCK_D)
        route = key
        if dk_route is not None:
            route = load_rows(k_route + b * r_b + h * r_h, rows, real, r_n, D, BLOCK_D)
        p, draw, dlean = _through_summary(
            route, real, surrogate, tl.load(phi + b * N + rows, mask=real, other=0.0),
            tl.load(share_lse + (b * H + h) * M + c), dp, tl.sum(shift, 0), scale, log2_scale,
        )  # fmt: skip
        grad_v += p[:, None] * to_v[None, :]
        grad_k += p[:, None] * to_k[None, :]
        tl.store(dphi + (b * H + h) * N + rows, dlean, mask=present)
        to = dsurrogates + (((b * H + h) * M + c) * BLOCKS + block) * D
        store_row(to, tl.sum(draw[:, None] * route.to(tl.float32), 0), D, BLOCK_D)
        if dk_route is not None:
            store_rows(dk_route + out, rows, present, H * D, draw[:, None] * surrogate[None, :], D, BLOCK_D)
        else:
            grad_k += draw[:, None] * surrogate[None, :]
    store_rows(dk + out, rows, present, H * D, grad_k, D, BLOCK_D)
    store_rows(dv + out, rows, present, H * D, grad_v, D, BLOCK_D)


class State(NamedTuple):
    """What the queries leave for the other kernels, about one softmax: its weights are 2^(logit - lse).

    Attributes:
        q: Queries, (B, N, H, D).
        grad: Gradient of the output, likewise.
        lse, delta: (B, N, H); delta is what the gradients of the weights are compared with.
        home: Cluster of each token, (B, N).
        phi: (B, N); if given, gate(phi) multiplies the logits.
    """

    q: Tensor
    grad: Tensor
    lse: Tensor
    delta: Tensor
    home: Tensor
    phi: Tensor | None = None


def backward(problem: Problem, grad: Tensor, out: Tensor, lse: Tensor) -> dict[str, Tensor | None]:
    """Gradients by operand name, tokens in rows (B, N, H, D); None where an operand has no part in it."""
    summary = summarise(problem) if problem.options.summaries else None
    home = torch.empty(lse.shape[:2], dtype=torch.int32, device=lse.device)
    state = State(with_unit_stride(problem.q), with_unit_stride(grad), lse, torch.empty_like(lse), home)
    dq = query_gradient(problem, state, summary, out, None)
    dkeys = dvalues = None
    if summary is not None:
        dkeys, dvalues = shared_gradient(problem, state, summary.keys, summary.values, summary.log_count)
    members = member_gradient(problem, state, summary, dkeys, dvalues)
    return UNUSED | {"q": dq} | prefix_gradient(problem, state) | members


def prefix_gradient(problem: Problem, state: State) -> dict[str, Tensor]:
    """Gradients of prefix keys and values, if there are any; ``state`` is that of the softmax they stand in."""
    keys, values = prefix_rows(problem)
    if keys is None or values is None:
        return {}
    both = shared_gradient(problem, state, keys, values, None)
    return {"prefix_k": both[0].clone(), "prefix_v": both[1].clone()}  # an operator's results share no memory


def query_gradient(
    problem: Problem, state: State, summary: Summary | None, out: Tensor | None, more: Tensor | None
) -> Tensor:
    """Gradient dq (B, N, H, D), with ``more`` of it added; with the output ``out`` it fills state.delta and home."""
    q, grad = state.q, state.grad
    k, v = with_unit_stride(problem.k), with_unit_stride(problem.v)
    dq = torch.empty(q.shape, dtype=problem.dtype, device=q.device)
    tiles = query_tiles(q, problem.cluster_size, problem.cluster_size)
    blocks = triton.cdiv(problem.cluster_size, tiles.rows)
    _query_gradient[problem.batch * problem.num_clusters * blocks * problem.heads,](
        q, k, v, *prefix_rows(problem), *summary_operands(summary), problem.index, mask_bytes(problem),
        grad, out, more, state.lse, dq, state.delta, state.home,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad.stride()[:3],
        problem.options.scale, problem.options.scale * LOG2E,
        problem.num_tokens, problem.num_clusters, problem.cluster_size, problem.num_prefix, problem.heads, blocks,
        D=problem.head_dim, BLOCK_D=tiles.block_d, BLOCK_Q=tiles.rows, BLOCK_K=tiles.step, BLOCK_P=16,
        PRECISION=tiles.precision, num_warps=8, num_stages=tiles.stages,
    )  # fmt: skip
    return dq


def shared_gradient(problem: Problem, state: State, keys: Tensor, values: Tensor, log_count: Tensor | None) -> Tensor:
    """Gradients (2, B, H, T, D) fp32 of keys and values (B, H, T, D) that every cluster sees."""
    q, grad = state.q, state.grad
    count = keys.shape[2]
    tiles = key_tiles(q, count, problem.num_tokens)
    spans = max(1, min(MOST_SPANS, problem.num_tokens // (4 * count)))
    span = triton.cdiv(triton.cdiv(problem.num_tokens, spans), tiles.step) * tiles.step
    spans = triton.cdiv(problem.num_tokens, span)
    part = torch.empty(2, spans, *keys.shape, device=q.device)
    rows = triton.cdiv(count, tiles.rows)
    _shared_gradient[problem.batch * spans * rows * problem.heads,](
        q, state.phi, keys, values, log_count, grad, state.lse, state.delta, state.home, part,
        *q.stride()[:3], *grad.stride()[:3], problem.options.scale, problem.options.scale * LOG2E,
        problem.num_tokens, count, problem.heads, rows, spans, span, part[0].numel(),
        D=problem.head_dim, BLOCK_D=tiles.block_d, BLOCK_T=tiles.rows, BLOCK_N=tiles.step,
        PRECISION=tiles.precision, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return part.sum(1)


def member_gradient(
    problem: Problem, state: State, summary: Summary | None, dkeys: Tensor | None, dvalues: Tensor | None
) -> dict[str, Tensor]:
    """Gradients by name of what belongs to members; dkeys, dvalues (B, H, M, D) are those of the summaries."""
    q, k, v, route = (with_unit_stride(x) for x in (problem.q, problem.k, problem.v, problem.k_route))
    dk, dv = (torch.empty(problem.v.shape, dtype=problem.dtype, device=q.device) for _ in range(2))
    own_route = summary is not None and problem.k_route is not problem.k
    droute = torch.empty_like(dk) if own_route else None
    tiles = key_tiles(q, problem.cluster_size, problem.cluster_size)
    blocks = triton.cdiv(problem.cluster_size, tiles.rows)
    dphi = torch.empty(problem.batch, problem.heads, problem.num_tokens, device=q.device)
    dsurrogates = torch.empty(*dphi.shape[:2], problem.num_clusters, blocks, problem.head_dim, device=q.device)
    mean_k, mean_v, share_lse = (None, None, None) if summary is None else summary[2:5]
    _member_gradient[problem.batch * problem.num_clusters * blocks * problem.heads,](
        q, k, v, route, problem.surrogates.contiguous(), problem.phi.contiguous(), problem.index, mask_bytes(problem),
        state.grad, state.lse, state.delta, mean_k, mean_v, dkeys, dvalues, share_lse,
        dk, dv, droute, dphi, dsurrogates,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *route.stride()[:3], *state.grad.stride()[:3],
        problem.options.scale, problem.options.scale * LOG2E,
        problem.num_tokens, problem.num_clusters, problem.cluster_size, problem.heads, blocks,
        D=problem.head_dim, BLOCK_D=tiles.block_d, BLOCK_Q=tiles.step,
        BLOCK_K=tiles.rows, PRECISION=tiles.precision, num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    if summary is None:
        return {"k": dk, "v": dv}
    grads = {"k": dk, "v": dv, "phi": dphi.sum(1)[..., None], "surrogates": dsurrogates.sum(3).sum(0)}
    return grads if droute is None else grads | {"k_route": droute}
