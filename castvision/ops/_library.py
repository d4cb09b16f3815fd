"""The operators ``torch.ops.castvision.*``: what compile, export, FX and TorchScript see as one node each.

``route``, ``fixed_clusters`` and ``resampling_matrix`` depend on data or on Python's control flow and have no gradient.
``attend`` has an explicit backward operator. Autocast stays on inside a custom operator, so each switches it off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, library

from castvision.ops import _fused
from castvision.ops._problem import Options, Problem
from castvision.ops.routing import learned_clusters, random_clusters, window_clusters, window_size
from castvision.ops.surrogates import resampling_matrix

_custom_op = cast(Callable[..., Callable[[Callable[..., Any]], Any]], library.custom_op)


@_custom_op("castvision::route", mutates_args=())
def _route(  # noqa: PLR0913 - an operator takes its operands one by one
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    token_mask: Tensor | None,
    cluster_size: int,
    assignment: str,
    activation: str,
    routing_score: str,
) -> Tensor:
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        return learned_clusters(
            q, k, surrogates, phi, token_mask, cluster_size, assignment, activation, routing_score
        ).contiguous()


@_route.register_fake
def _(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    token_mask: Tensor | None,
    cluster_size: int,
    assignment: str,
    activation: str,
    routing_score: str,
) -> Tensor:
    return q.new_empty((q.shape[0], surrogates.shape[1], cluster_size), dtype=torch.long)


@_custom_op("castvision::fixed_clusters", mutates_args=())
def _fixed_clusters(  # noqa: PLR0913
    q: Tensor, num_clusters: int, cluster_size: int, rows: int, cols: int, seed: int, assignment: str
) -> Tensor:
    """Windows of the (rows, cols) grid, or a random partition of q's N tokens; the same for all images."""
    if assignment == "window":
        index = window_clusters(rows, cols, cluster_size)
    else:
        index = random_clusters(q.shape[2], num_clusters, cluster_size, seed)
    return index.to(q.device).expand(q.shape[0], -1, -1).contiguous()


@_fixed_clusters.register_fake
def _(  # noqa: PLR0913
    q: Tensor, num_clusters: int, cluster_size: int, rows: int, cols: int, seed: int, assignment: str
) -> Tensor:
    if assignment == "window":
        height, width = window_size(rows, cols, cluster_size)
        num_clusters, cluster_size = -(-rows // height) * -(-cols // width), height * width
    return q.new_empty((q.shape[0], num_clusters, cluster_size), dtype=torch.long)


@_custom_op("castvision::resampling_matrix", mutates_args=())
def _resampling_matrix(surrogates: Tensor, num_clusters: int) -> Tensor:
    with torch.no_grad(), torch.autocast(surrogates.device.type, enabled=False):
        return resampling_matrix(surrogates, num_clusters)


@_resampling_matrix.register_fake
def _(surrogates: Tensor, num_clusters: int) -> Tensor:
    return surrogates.new_empty((num_clusters, surrogates.shape[1]))


@_custom_op("castvision::attend", mutates_args=())
def _attend(  # noqa: PLR0913
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    q_route: Tensor | None,
    k_route: Tensor | None,
    token_mask: Tensor | None,
    seed: Tensor | None,
    scale: float,
    mixing: str,
    activation: str,
    laplace_norm: bool,
    summaries: bool,
    is_partition: bool,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D) and log-sum-exp (B, N, H) for the backward."""
    options = Options(scale, mixing, activation, laplace_norm, summaries, is_partition, dropout_p)
    with torch.autocast(q.device.type, enabled=False):
        problem = Problem(q, k, v, surrogates, phi, index, prefix_k, prefix_v, q_route, k_route, token_mask, options)
        out, lse = _fused.forward(problem, _int(seed))
        return out.to(q.dtype).contiguous(), lse.contiguous()


@_attend.register_fake
def _(q: Tensor, *operands: Any) -> tuple[Tensor, Tensor]:
    batch, heads, num_tokens, head_dim = q.shape
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(batch, num_tokens, heads, head_dim), q.new_empty(batch, num_tokens, heads, dtype=wide)


_GRADS = ("q", "k", "v", "surrogates", "phi", "prefix_k", "prefix_v", "q_route", "k_route")


@_custom_op("castvision::attend_backward", mutates_args=())
def _attend_backward(  # noqa: PLR0913
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    q_route: Tensor | None,
    k_route: Tensor | None,
    token_mask: Tensor | None,
    seed: Tensor | None,
    scale: float,
    mixing: str,
    activation: str,
    laplace_norm: bool,
    summaries: bool,
    is_partition: bool,
    dropout_p: float,
) -> list[Tensor]:
    """Gradients in the order of _GRADS, tokens in rows (B, N, H, D); empty for an operand that was None."""
    options = Options(scale, mixing, activation, laplace_norm, summaries, is_partition, dropout_p)
    with torch.autocast(q.device.type, enabled=False):
        problem = Problem(q, k, v, surrogates, phi, index, prefix_k, prefix_v, q_route, k_route, token_mask, options)
        grads = _fused.backward(problem, grad.to(problem.dtype), out.to(problem.dtype), lse, _int(seed))
        operands = (q, k, v, surrogates, phi, prefix_k, prefix_v, q_route, k_route)
        result = []
        for name, operand in zip(_GRADS, operands, strict=True):
            value = grads[name]
            if operand is None:
                result.append(q.new_empty(0))
            elif value is None:  # an operand that this mixing does not use
                result.append(torch.zeros_like(_as_rows(name, operand), memory_format=torch.contiguous_format))
            else:
                result.append(value.to(operand.dtype).contiguous())
        return result


@_attend_backward.register_fake
def _(  # noqa: PLR0913
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    q_route: Tensor | None,
    k_route: Tensor | None,
    *rest: Any,
) -> list[Tensor]:
    operands = (q, k, v, surrogates, phi, prefix_k, prefix_v, q_route, k_route)
    return [
        q.new_empty(0) if x is None else torch.empty_like(_as_rows(name, x), memory_format=torch.contiguous_format)
        for name, x in zip(_GRADS, operands, strict=True)
    ]


def _as_rows(name: str, x: Tensor) -> Tensor:
    return x.transpose(1, 2) if name in ("q", "k", "v", "q_route", "k_route") else x


def _int(seed: Tensor | None) -> int:
    return 0 if seed is None else int(seed)


_NUM_TENSORS = 12  # tensor arguments of attend, the rest are constants


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs[:_NUM_TENSORS])
    ctx.constants = inputs[_NUM_TENSORS:]


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
    # grad_lse is not used: the log-sum-exp is for this backward alone, and no function of ours hands it out
    out, lse, *tensors = ctx.saved_tensors
    grads = torch.ops.castvision.attend_backward(grad, out, lse, *tensors, *ctx.constants)
    by_name: dict[str, Tensor | None] = {}
    operands = (*tensors[:5], *tensors[6:10])  # all but the index, in the order of _GRADS
    for name, operand, value in zip(_GRADS, operands, grads, strict=True):
        by_name[name] = None if operand is None else _as_rows(name, value)
    main = [by_name[name] for name in _GRADS]
    return (*main[:5], None, *main[5:], None, None, *(None for _ in ctx.constants))


_attend.register_autograd(_backward, setup_context=_setup_context)
