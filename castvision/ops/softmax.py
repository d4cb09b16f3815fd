"""Attention in O(N) memory with its log-sum-exp, differentiable in both: the building block of clustered attention.

Every part of a clustered attention (inside clusters, on summaries, on surrogates) is one call of :func:`attend`; parts
are merged by their log-sum-exps. The gradient of the log-sum-exp L is that of a further logit,

    d logit = P (dP - delta + dL),    delta = grad . out

so that merging needs no code of its own. The attention function f is the softmax, or elementwise the Laplace function
of MEGA (arXiv 2209.10655, eq. 16), which CAST (arXiv 2402.04239) offers beside it.
"""

import functools
import logging
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

WORKSPACE = 1 << 20
"""Attention weights held at once in eager mode: 4 MiB of fp32, so that a CPU's last cache holds them."""

_HALF_IS_SLOW = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
"""Without AVX-512, matrix products of torch in bfloat16 and float16 run 10 times slower than in fp32."""


def laplace(x: Tensor) -> Tensor:
    """Elementwise f(x) = (1 + erf((x - mean) / (std * sqrt 2))) / 2, mean = sqrt(1/2), std = sqrt(1 / (4 pi))."""
    # 1 / (std sqrt 2) = sqrt(2 pi)
    return torch.erf((x - math.sqrt(0.5)) * math.sqrt(2 * math.pi)).add(1).mul(0.5)


def laplace_derivative(x: Tensor) -> Tensor:
    """Derivative of :func:`laplace`: the normal density with its mean and standard deviation."""
    return torch.exp(-2 * math.pi * (x - math.sqrt(0.5)).square()).mul(math.sqrt(2.0))


def gate(x: Tensor) -> Tensor:
    """softplus(x) + 1: at least 1, so that it can only sharpen the logits it multiplies."""
    return F.softplus(x) + 1


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of softmaxes and sums: float64 for float64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def arithmetic_dtype(v: Tensor) -> torch.dtype:
    """The dtype to compute in: that of v, but fp32 for half precision on a CPU that has no arithmetic for it."""
    if v.device.type != "cpu" or (v.dtype != torch.bfloat16 and v.dtype != torch.float16):
        return v.dtype
    if not torch.jit.is_scripting():
        if not _HALF_IS_SLOW:
            return v.dtype
        if not torch.compiler.is_compiling():
            _warn_of_half()
    return torch.float32


@functools.cache
def _warn_of_half() -> None:
    logging.getLogger(__name__).warning("half precision is computed in fp32: this CPU has no fast arithmetic for it")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    activation: str = "softmax",
    dropout_p: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention inside each of G groups, and the log-sum-exp of every row of logits.

    Eager mode works in chunks of at most ``WORKSPACE`` weights and computes them again in the backward. While
    scripting, tracing, compiling or exporting, the same formula is plain operations on all weights at once.

    Args:
        q: Queries, (G, H, Q, D), already times the scale. Any of the tensors may be an expanded view.
        k: Keys, (G, H, S, D).
        v: Values, (G, H, S, D), maybe of another dtype.
        bias: Added to the logits, broadcastable to (G, H, Q, S) with four axes, a constant: it gets no gradient. -inf
            hides a key; one hidden from all queries may hold anything, NaN too. Laplace weights are multiplied by its
            exponential: log n makes a key count n times, -log n divides. None: no bias.
        activation: "softmax" or "laplace".
        dropout_p: Dropout of the weights.
        seed: Of dropout, in eager mode; otherwise torch's own state draws.

    Returns:
        Output (G, H, Q, D) in v's dtype, and log-sum-exp (G, H, Q) in fp32 or float64, zeros for Laplace. A query that
        sees no key gets output 0 and log-sum-exp -inf, and gives no gradient. NaN in a query stays inside its group.
    """
    if not torch.jit.is_scripting():
        at_once = torch.compiler.is_compiling() or q.is_meta
        if not (at_once or torch.jit.is_tracing()):  # type: ignore[no-untyped-call]
            out, lse = _Attend.apply(q, k, v, bias, activation, dropout_p, seed)
            return out, lse
    weight, lse = _weights(_logits(q, _without_hidden(k, bias)), bias, activation)
    weight = F.dropout(weight, dropout_p, training=dropout_p > 0)
    return weight.to(v.dtype) @ _without_hidden(v, bias), lse


def _logits(q: Tensor, k: Tensor) -> Tensor:
    return (q @ k.transpose(-1, -2)).to(wide_dtype(q.dtype))


def _without_hidden(rows: Tensor, bias: Tensor | None) -> Tensor:
    """Keys or values with zeros where no query sees them, since a weight of zero times NaN would be NaN."""
    if bias is None:
        return rows
    return rows.masked_fill(bias.isneginf().all(2, keepdim=True).transpose(2, 3), 0.0)


def _weights(logits: Tensor, bias: Tensor | None, activation: str) -> tuple[Tensor, Tensor]:
    """Weights (G, H, Q, S) and log-sum-exp (G, H, Q); rows that see nothing by selection, for the gradient too."""
    if activation == "laplace":
        weight = laplace(logits)
        return weight if bias is None else weight * bias.exp(), logits.new_zeros(logits.shape[:3])
    if bias is not None:
        logits = logits + bias
    top = logits.detach().amax(-1, keepdim=True)
    top = top.masked_fill(top.isneginf(), 0.0)
    exponential = torch.exp(logits - top)
    total = exponential.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    lse = (top + total.log()).masked_fill(empty, -math.inf)
    return exponential / total, lse.squeeze(-1)


class _Attend(torch.autograd.Function):
    """:func:`attend` in eager mode."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, activation: str, dropout_p: float, seed: int
    ) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q, dtype=v.dtype)
        lse = q.new_empty(q.shape[:3], dtype=wide_dtype(q.dtype))
        keep = _Dropout(dropout_p, seed, q.device)
        with torch.autocast(q.device.type, enabled=False):
            for group, rows, some in _chunks(q, k, bias):
                keys, values = _without_hidden(k[group], some), _without_hidden(v[group], some)
                weight, lse[group, :, rows] = _weights(_logits(q[group, :, rows], keys), some, activation)
                out[group, :, rows] = keep(weight).to(v.dtype) @ values
        ctx.save_for_backward(q, k, v, bias, out, lse)
        ctx.activation, ctx.dropout_p, ctx.seed = activation, dropout_p, seed
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, lse = ctx.saved_tensors
        wide = lse.dtype
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        keep = _Dropout(ctx.dropout_p, ctx.seed, q.device)
        with torch.autocast(q.device.type, enabled=False):
            for group, rows, some in _chunks(q, k, bias):
                at = (group, slice(None), rows)
                keys, values = _without_hidden(k[group], some), _without_hidden(v[group], some)
                logits = _logits(q[at], keys)
                d_weight = keep((grad[at] @ values.transpose(-1, -2)).to(wide))
                if ctx.activation == "laplace":
                    count = 1.0 if some is None else some.exp()
                    weight = laplace(logits) * count
                    d_logits = laplace_derivative(logits) * count * d_weight
                else:
                    empty = lse[at].isneginf()
                    logits = logits if some is None else logits + some
                    weight = torch.exp(logits - lse[at].masked_fill(empty, 0)[..., None])
                    shift = grad_lse[at] - (grad[at].to(wide) * out[at].to(wide)).sum(-1)
                    d_logits = weight * (d_weight + shift.masked_fill(empty, 0)[..., None])
                dv[group] += keep.again(weight).to(v.dtype).transpose(-1, -2) @ grad[at]
                narrow = d_logits.to(q.dtype)
                dq[at] = narrow @ keys
                dk[group] += narrow.transpose(-1, -2) @ q[at]
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None, None, None


class _Dropout:
    """Drops weights chunk by chunk, drawing the same masks for the same seed and chunks."""

    def __init__(self, p: float, seed: int, device: torch.device) -> None:
        self.p, self.mask = p, torch.empty(0)
        self.generator = torch.Generator(device).manual_seed(seed) if p else None

    def __call__(self, weight: Tensor) -> Tensor:
        if self.generator is None:
            return weight
        self.mask = torch.empty_like(weight).bernoulli_(1 - self.p, generator=self.generator).div_(1 - self.p)
        return weight * self.mask

    def again(self, weight: Tensor) -> Tensor:
        """Drop by the mask drawn last."""
        return weight if self.generator is None else weight * self.mask


def _chunks(q: Tensor, k: Tensor, bias: Tensor | None) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Groups and queries whose weights fill the workspace, with their bias; the same ones in forward and backward."""
    groups, heads, queries = q.shape[:3]
    row = heads * k.shape[2]
    rows = max(1, min(queries, WORKSPACE // row))
    some = max(1, WORKSPACE // (row * rows))
    for group in (slice(g, g + some) for g in range(0, groups, some)):
        for part in (slice(r, r + rows) for r in range(0, queries, rows)):
            if bias is None:
                yield group, part, None
            else:
                first = group if bias.shape[0] > 1 else slice(None)
                yield group, part, bias[first, :, part if bias.shape[2] > 1 else slice(None)]
