"""The paper's mixing, and joint mixing where clusters overlap or are many: own clusters and the rest, merged.

Every token's weights run over one row: the keys that all tokens share (*foreign*: prefix and summaries for joint
mixing, surrogates with the summaries as values for the paper's, the token's own clusters left out) and, for each
cluster it sits in, a slot. A slot's logit is the log-sum-exp over the cluster's members (joint), or the mixing logit of
step 5 (the paper's). With softmax one log-sum-exp per token, L, ties them together:

    weight = exp(logit - L)      d logit = weight (d weight - delta),   delta = grad . out

and backward needs nothing but L and the output. With Laplace the parts are simply added.
"""

from __future__ import annotations

import torch
from torch import Tensor

from castvision.ops import _surrogate
from castvision.ops._foreign import Foreign
from castvision.ops._functions import MASKED, laplace
from castvision.ops._own import OwnGradient, mixing_divisor, own_clusters
from castvision.ops._problem import Problem
from castvision.ops._summaries import SlotGradients


def forward(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Output by token (B, N, H, D) and L (B, N, H); L is zero for Laplace."""
    if _surrogate.fits(problem):
        return _surrogate.forward(problem)
    foreign = Foreign(problem)
    out, rest = foreign.attend(seed + 1)
    slot_out, slot_logit = own_clusters(problem, seed)
    ids = problem.ids.flatten(1)[..., None].expand_as(slot_logit)
    if problem.softmax:
        top = torch.maximum(rest, problem.reduce(slot_logit, "max"))
        total = torch.exp(rest - top) + problem.reduce(torch.exp(slot_logit - top.gather(1, ids)), "sum")
        # a token that sees nothing gets L so high that every weight, and its output, is exactly zero
        lse = torch.where(top > MASKED / 2, top + total.log(), -MASKED)
        out = out * torch.exp(rest - lse)[..., None].to(out.dtype)
    else:
        lse = torch.zeros_like(rest)
    weight = _slot_weight(problem, slot_logit, lse.gather(1, ids))
    out = out + problem.reduce(slot_out * weight[..., None].to(out.dtype), "sum")
    return problem.zero_masked(out), lse


def backward(problem: Problem, grad: Tensor, out: Tensor, lse: Tensor, seed: int) -> dict[str, Tensor | None]:
    """Gradients by operand name from those of the output; grad, out: (B, N, H, D), lse: (B, N, H)."""
    grad = problem.zero_masked(grad)
    delta = (grad.to(problem.wide) * out.to(problem.wide)).sum(-1)  # B, N, H
    foreign = Foreign(problem)
    foreign.backward(grad, lse, delta, seed + 1)
    slots = SlotGradients(problem)
    own = OwnGradient(problem, slots, grad, lse, delta)
    own.run(seed)
    if problem.options.summaries:
        slots.add_summaries(foreign.summary_key_grad(), foreign.value_grad[:, :, foreign.first_summary :])
    else:
        slots.without_summaries()
    grads = slots.totals()
    _add_query_parts(problem, grads, foreign, own)
    if problem.num_prefix:
        grads["prefix_k"], grads["prefix_v"] = own.prefix_grad
        if problem.joint:
            grads["prefix_k"] = foreign.key_grad[:, :, : problem.num_prefix]
            grads["prefix_v"] = foreign.value_grad[:, :, : problem.num_prefix]
    return grads


def _add_query_parts(problem: Problem, grads: dict[str, Tensor | None], foreign: Foreign, own: OwnGradient) -> None:
    """Put the mixing's gradients of queries, surrogates and phi where they belong."""
    q, phi, surrogates = grads["q"], grads["phi"], grads["surrogates"]
    if problem.joint or q is None or phi is None or surrogates is None:
        grads["q"] = foreign.query_grad if q is None else q.add_(foreign.query_grad)
        return
    if own.has_own_route:
        grads["q_route"] = foreign.query_grad + problem.reduce(own.mix_query_grad, "sum")
    else:
        q.add_(foreign.query_grad)
    gates = foreign.gate_grad + problem.reduce(own.mix_gate_grad, "sum")
    grads["phi"] = phi + (gates * torch.sigmoid(problem.phi))[..., None]
    mixing = foreign.key_grad.sum(0) if problem.options.summaries else 0
    grads["surrogates"] = surrogates + own.mix_surrogate_grad + mixing


def _slot_weight(problem: Problem, logit: Tensor, lse: Tensor) -> Tensor:
    """Weight of a token's own cluster, same shape as ``logit``."""
    if problem.softmax:
        return torch.exp(logit - lse)
    if problem.joint:
        return torch.ones_like(logit)
    return laplace(logit) / mixing_divisor(problem, logit)
