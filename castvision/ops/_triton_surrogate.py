"""The paper's mixing over a partition in Triton, backward; its forward is in :mod:`._triton_attend`.

A token weighs its own cluster by w = 2^(own - L), where own is the logit of the cluster's surrogate and L the
log-sum-exp that the forward left. A member m of the cluster has the share 2^(logit - lse) in there, thus in the output

    w 2^(logit - lse) = 2^(logit - lse'),   lse' = lse + L - own        d logit = that (grad . v_m - d_mix)

with d_mix = grad . (mean inside the cluster). So prefix and members go through the kernels of joint mixing, with lse'
as the log-sum-exp and d_mix as delta; and so do the other clusters, as summaries whose keys are the surrogates, with
the routing queries. What is left is one kernel of the queries, ``mixing_gradient``: it takes the gradients that come
through the clusters, d own = w (d_mix - delta) among them, and finds lse' and d_mix.
"""

# ruff: noqa: ANN001, ANN202, PLR0913 - kernels take pointers and sizes, one by one
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from castvision.ops._problem import Problem
from castvision.ops._triton_attend import LOG2E, Summary, attend, gate, mask_bytes, own_logit, summarise
from castvision.ops._triton_backward import (
    UNUSED,
    State,
    member_gradient,
    prefix_gradient,
    query_gradient,
    query_shared,
    shared_gradient,
)
from castvision.ops._triton_rows import (
    load_members,
    load_row,
    load_rows,
    query_tiles,
    split_program,
    store_row,
    store_rows,
    with_unit_stride,
)


@triton.jit
def _mixing_gradient(
    q_route, phi, keys, values, log_count, index, token_mask, grad, out, lse, inside, inside_lse,
    dq_route, dphi, dsurrogates, delta, home, own_lse, own_delta,
    r_b, r_n, r_h, g_b, g_n, g_h, scale, log2_scale, N, M, K, H, BLOCKS,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_M: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b, c, block, h = split_program(M, H, BLOCKS)
    q_route, grad, index = q_route + b * r_b + h * r_h, grad + b * g_b + h * g_h, index + (b * M + c) * K
    token_mask = None if token_mask is None else token_mask + b * N
    at, here = (b * H + h) * M * D, b * N * H * D + h * D
    rows, present, real = load_members(index, token_mask, block * BLOCK_Q, K, N, BLOCK_Q)
    state = (b * N + rows) * H + h
    dout = load_rows(grad, rows, real, g_n, D, BLOCK_D).to(tl.float32)
    product = tl.sum(dout * load_rows(out + here, rows, real, H * D, D, BLOCK_D).to(tl.float32), 1)
    towards = tl.sum(dout * load_rows(inside + here, rows, real, H * D, D, BLOCK_D).to(tl.float32), 1)
    route = load_rows(q_route, rows, real, r_n, D, BLOCK_D)
    sharpness = gate(tl.load(phi + b * N + rows, mask=real, other=0.0))
    log_total = tl.load(lse + state, mask=real, other=float("inf"))
    log_weight = own_logit(route, keys + at + c * D, D, BLOCK_D) * sharpness * log2_scale - log_total
    own_total = tl.load(inside_lse + state, mask=real, other=0.0) - log_weight
    tl.store(own_lse + state, own_total, mask=present)
    tl.store(own_delta + state, towards, mask=present)
    tl.store(delta + state, product, mask=present)
    tl.store(home + b * N + rows, tl.zeros([BLOCK_Q], tl.int32) + c.to(tl.int32), mask=present & (h == 0))
    down = tl.exp2(log_weight) * (towards - product)
    to = dsurrogates + (((b * H + h) * M + c) * BLOCKS + block) * D
    store_row(to, tl.sum((down * sharpness * scale)[:, None] * route.to(tl.float32), 0), D, BLOCK_D)
    # what was read before is read again behind stores and loops, not kept: registers are short
    total = query_shared(
        route, load_rows(grad, rows, real, g_n, D, BLOCK_D), keys + at, values + at, log_count + b * M, M, c,
        -log_total[:, None], product[:, None], (sharpness * log2_scale)[:, None],
        down[:, None] * load_row(keys + at + c * D, D, BLOCK_D)[None, :], D, BLOCK_D, BLOCK_M, PRECISION,
    )  # fmt: skip
    lean = tl.load(phi + b * N + rows, mask=real, other=0.0)
    dsharpness = tl.sum(total * load_rows(q_route, rows, real, r_n, D, BLOCK_D).to(tl.float32), 1) * scale
    tl.store(dphi + (b * H + h) * N + rows, dsharpness * tl.sigmoid(lean), mask=present)
    store_rows(dq_route + here, rows, present, H * D, total * (gate(lean) * scale)[:, None], D, BLOCK_D)


def backward(problem: Problem, grad: Tensor, out: Tensor, lse: Tensor) -> dict[str, Tensor | None]:
    """Gradients by operand name, as :func:`._triton_backward.backward` gives them; for summaries=True."""
    summary = summarise(problem)
    grads, clusters, own = _queries(problem, summary, with_unit_stride(grad), out, lse)
    dkeys, dvalues = shared_gradient(problem, clusters, summary.keys, summary.values, summary.log_count)
    members = member_gradient(problem, own, summary, None, dvalues)
    members["phi"] += grads["phi"]
    members["surrogates"] += grads["surrogates"] + dkeys.sum(0)
    return UNUSED | grads | prefix_gradient(problem, own) | members


def _queries(
    problem: Problem, summary: Summary, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[dict[str, Tensor], State, State]:
    """Gradients that come through the queries, and the states of the softmax over clusters and of w times that inside.

    Of phi and surrogates they are parts.
    """
    route, phi = with_unit_stride(problem.q_route), problem.phi.contiguous()
    inside, inside_lse = attend(problem, None)
    dq_route = torch.empty_like(inside)
    delta, own_lse, own_delta = (torch.empty_like(lse) for _ in range(3))
    home = torch.empty(lse.shape[:2], dtype=torch.int32, device=lse.device)
    tiles = query_tiles(route, problem.cluster_size, problem.num_clusters)
    blocks = triton.cdiv(problem.cluster_size, tiles.rows)
    dphi = torch.empty(problem.batch, problem.heads, problem.num_tokens, device=lse.device)
    dsurrogates = torch.empty(*summary.keys.shape[:3], blocks, problem.head_dim, device=lse.device)
    _mixing_gradient[problem.batch * problem.num_clusters * blocks * problem.heads,](
        route, phi, summary.keys, summary.values, summary.log_count, problem.index, mask_bytes(problem),
        grad, out, lse, inside, inside_lse, dq_route, dphi, dsurrogates, delta, home, own_lse, own_delta,
        *route.stride()[:3], *grad.stride()[:3], problem.options.scale, problem.options.scale * LOG2E,
        problem.num_tokens, problem.num_clusters, problem.cluster_size, problem.heads, blocks,
        D=problem.head_dim, BLOCK_D=tiles.block_d, BLOCK_Q=tiles.rows, BLOCK_M=tiles.step,
        PRECISION=tiles.precision, num_warps=8, num_stages=tiles.stages,
    )  # fmt: skip
    own = State(with_unit_stride(problem.q), grad, own_lse, own_delta, home)
    grads = {"phi": dphi.sum(1)[..., None], "surrogates": dsurrogates.sum(3).sum(0)}
    if problem.q_route is problem.q:
        grads["q"] = query_gradient(problem, own, None, None, dq_route)
    else:
        grads["q"], grads["q_route"] = query_gradient(problem, own, None, None, None), dq_route
    return grads, State(route, grad, lse, delta, home, phi), own
