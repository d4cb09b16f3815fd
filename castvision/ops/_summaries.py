"""Step 4 of CAST and its joint form: one value (and key) that speaks for each cluster, forward and backward.

    a = (k S_c) gate(-phi) scale        p = f_K(a)        v_bar = p v,  k_bar = p k        of the cluster's real tokens

The paper's mixing uses v_bar alone, with f either function. Joint mixing uses both, with p a softmax for either f, so
that they are means. A cluster without a real token has zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from castvision.ops._functions import gate, laplace, laplace_derivative
from castvision.ops._problem import Chunk, Problem, TokenSum


class Shares(NamedTuple):
    """p and what it came from, for one chunk: logits before the gate and p, (b, c, H, K); gate (b, c, 1, K)."""

    raw: Tensor
    gate: Tensor
    p: Tensor
    keys: Tensor  # b, c, H, K, D: routing keys


def shares(problem: Problem, chunk: Chunk) -> Shares:
    """How much each member counts in its cluster's summary."""
    options = problem.options
    keys = problem.gather(problem.k_route, chunk).contiguous()  # two products read it
    surrogates = problem.surrogates[:, chunk.clusters].transpose(0, 1)  # c, H, D
    raw = (keys @ surrogates[None, ..., None])[..., 0].to(problem.wide) * options.scale  # b, c, H, K
    sharpness = gate(-problem.gather_phi(chunk))[:, :, None]
    valid = chunk.valid[:, :, None]
    if uses_softmax(problem):
        p = (raw * sharpness + problem.slot_bias(chunk)[:, :, None]).softmax(-1) * valid
    else:
        p = laplace(raw * sharpness) * valid / _divisor(problem, chunk)
    return Shares(raw, sharpness, p, keys)


def uses_softmax(problem: Problem) -> bool:
    """Joint mixing takes means, whatever f."""
    return problem.softmax or problem.joint


def summarise(problem: Problem) -> tuple[Tensor, Tensor]:
    """Summary keys and values (B, H, M, D); the paper's mixing has no summary keys (an empty tensor)."""
    if problem.q.device.type == "cpu" and problem.dtype == problem.wide and uses_softmax(problem):
        return _summarise_compiled(problem)
    shape = (problem.batch, problem.heads, problem.num_clusters, problem.head_dim)
    keys = problem.q.new_empty(shape if problem.joint else (0,))
    values = problem.q.new_empty(shape)
    for chunk in problem.cluster_chunks(problem.cluster_size * problem.heads * problem.head_dim):
        part = shares(problem, chunk)
        p = part.p.to(problem.dtype)[..., None, :]  # b, c, H, 1, K
        at = (chunk.images, slice(None), chunk.clusters)
        values[at] = (p @ problem.gather(problem.v, chunk))[..., 0, :].transpose(1, 2)
        if problem.joint:
            members = part.keys if problem.k_route is problem.k else problem.gather(problem.k, chunk)
            keys[at] = (p @ members)[..., 0, :].transpose(1, 2)
    return keys, values


def _summarise_compiled(problem: Problem) -> tuple[Tensor, Tensor]:
    """The same in a third of the time, without temporaries; fp32 and float64, softmax."""
    from castvision.ops._summaries_numba import summarise as means

    sharpness = gate(-problem.phi) * problem.options.scale  # B, N
    sources = (problem.v, problem.k) if problem.joint else (problem.v,)
    images = [
        means(
            problem.ids[b], problem.valid[b], problem.surrogates, sharpness[b], problem.k_route[b],
            tuple(source[b] for source in sources),
        )
        for b in range(problem.batch)
    ]  # fmt: skip
    values, *keys = (torch.stack(parts) for parts in zip(*images, strict=True))
    return keys[0] if keys else values.new_empty(0), values


class SummaryGradient(NamedTuple):
    """Gradients of a chunk's slots: k, v, k_route (b, c, H, K, D; k None for the paper's mixing), phi (b, c, K)."""

    k: Tensor | None
    v: Tensor
    k_route: Tensor
    phi: Tensor


def summary_gradient(
    problem: Problem, chunk: Chunk, grad_keys: Tensor | None, grad_values: Tensor, grad_surrogates: Tensor
) -> SummaryGradient:
    """Backward of :func:`summarise` for one chunk; adds the surrogates' part to ``grad_surrogates`` (H, M, D).

    grad_keys, grad_values: (B, H, M, D), complete.
    """
    part = shares(problem, chunk)
    at = (chunk.images, slice(None), chunk.clusters)
    dv_bar = grad_values[at].transpose(1, 2)[..., None]  # b, c, H, D, 1
    dp = (problem.gather(problem.v, chunk) @ dv_bar)[..., 0]  # b, c, H, K
    grad_v = part.p.to(problem.dtype)[..., None] * dv_bar.transpose(-1, -2)
    grad_k: Tensor | None = None
    if grad_keys is not None:
        dk_bar = grad_keys[at].transpose(1, 2)[..., None]
        members = part.keys if problem.k_route is problem.k else problem.gather(problem.k, chunk)
        dp = dp + (members @ dk_bar)[..., 0]
        grad_k = part.p.to(problem.dtype)[..., None] * dk_bar.transpose(-1, -2)
    dp = dp.to(problem.wide)
    if uses_softmax(problem):
        da = part.p * (dp - (part.p * dp).sum(-1, keepdim=True))
    else:
        da = laplace_derivative(part.raw * part.gate) * chunk.valid[:, :, None] / _divisor(problem, chunk) * dp
    dgate = (da * part.raw).sum(2)  # b, c, K
    draw = (da * part.gate * problem.options.scale).to(problem.dtype)
    surrogates = problem.surrogates[:, chunk.clusters].transpose(0, 1)  # c, H, D
    grad_surrogates[:, chunk.clusters] += (draw[..., None, :] @ part.keys)[..., 0, :].sum(0).transpose(0, 1)
    grad_phi = -dgate * torch.sigmoid(-problem.gather_phi(chunk))
    return SummaryGradient(grad_k, grad_v, draw[..., None] * surrogates[None, :, :, None], grad_phi)


def _divisor(problem: Problem, chunk: Chunk) -> Tensor | float:
    if not problem.options.laplace_norm:
        return 1.0
    return problem.counts[chunk.images, chunk.clusters].clamp(min=1)[..., None, None]


class SlotGradients:
    """Gradients of everything that is gathered, filled by slot: q, k, v, the routing pair (its own or q, k), phi.

    The attention part of q, k, v comes first, then :meth:`add_summaries`.
    """

    def __init__(self, problem: Problem) -> None:
        tail = (problem.heads, problem.head_dim)
        self.problem = problem
        self.q, self.k, self.v = (TokenSum(problem, *tail) for _ in range(3))
        self.k_route = self.k if problem.k_route is problem.k else TokenSum(problem, *tail)
        self.phi = TokenSum(problem, dtype=problem.wide)
        self.surrogates = torch.zeros_like(problem.surrogates, dtype=problem.wide)

    def add_summaries(self, grad_keys: Tensor | None, grad_values: Tensor) -> None:
        """Add what flows back through the summaries, given their complete gradients (B, H, M, D)."""
        problem = self.problem
        narrow_keys = None if grad_keys is None else grad_keys.to(problem.dtype)
        narrow_values = grad_values.to(problem.dtype)
        for chunk in problem.cluster_chunks(4 * problem.cluster_size * problem.heads * problem.head_dim):
            part = summary_gradient(problem, chunk, narrow_keys, narrow_values, self.surrogates)
            shared = self.k_route is self.k
            if part.k is not None:
                dk = part.k + part.k_route if shared else part.k
                self.k.put(chunk, dk.transpose(2, 3), accumulate=True)
            elif shared:
                self.k.put(chunk, part.k_route.transpose(2, 3), accumulate=True)
            if not shared:
                self.k_route.put(chunk, part.k_route.transpose(2, 3))
            self.v.put(chunk, part.v.transpose(2, 3), accumulate=True)
            self.phi.put(chunk, part.phi)

    def without_summaries(self) -> None:
        """Nothing flows back through summaries: zeros, not garbage."""
        self.phi.rows.zero_()
        if self.k_route is not self.k:
            self.k_route.rows.zero_()

    def totals(self) -> dict[str, Tensor | None]:
        """Gradients by operand name, tokens in rows: (B, N, H, D), phi (B, N, 1); k_route None where it is k."""
        own_route = self.k_route is not self.k
        return {
            "q": self.q.total(),
            "k": self.k.total(),
            "v": self.v.total(),
            "k_route": self.k_route.total() if own_route else None,
            "q_route": None,
            "phi": self.phi.total()[..., None],
            "surrogates": self.surrogates,
            "prefix_k": None,
            "prefix_v": None,
        }
