"""Own clusters, for the merged back end: attention inside each chunk of clusters, forward and backward.

Joint mixing: the members alone (the prefix is seen once, elsewhere); the slot's logit is the log-sum-exp over them.
The paper's (steps 3 and 5): prefix and members; the slot's logit is (q S_c) gate(phi) scale.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from castvision.ops._functions import MASKED, gate, laplace, laplace_derivative
from castvision.ops._problem import Chunk, Problem, dropout_mask
from castvision.ops._summaries import SlotGradients
from castvision.ops._weights import key_multiplicity, logits_gradient, weights


class _Intra(NamedTuple):
    """A chunk's members: q (b, c, H, K, D), keys, values (b, c, H, P + K, D; P = 0 for joint), bias, logits."""

    q: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor
    logits: Tensor


def _elements(problem: Problem) -> int:
    # twice: keys and values stand beside the weights
    return 2 * problem.heads * (problem.num_prefix + problem.cluster_size) * max(problem.cluster_size, problem.head_dim)


def own_operands(problem: Problem, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values of a chunk's members and the bias (b, c, 1, 1, P + K) that hides padding."""
    q = problem.gather(problem.q, chunk)
    keys, values, bias = problem.gather(problem.k, chunk), problem.gather(problem.v, chunk), problem.slot_bias(chunk)
    if not problem.joint and problem.prefix_k is not None and problem.prefix_v is not None:
        shape = (*q.shape[:3], problem.num_prefix, problem.head_dim)
        keys = torch.cat([problem.prefix_k[chunk.images, None].expand(shape), keys], 3)
        values = torch.cat([problem.prefix_v[chunk.images, None].expand(shape), values], 3)
        bias = torch.cat([bias.new_zeros(*bias.shape[:2], problem.num_prefix), bias], 2)
    return q, keys, values, bias[:, :, None, None]


def _intra(problem: Problem, chunk: Chunk) -> _Intra:
    q, keys, values, bias = own_operands(problem, chunk)
    logits = (q * problem.options.scale) @ keys.transpose(-1, -2)
    return _Intra(q, keys, values, bias, logits)


def _intra_weights(problem: Problem, part: _Intra, chunk: Chunk) -> Tensor:
    """Weights inside a chunk's clusters, (b, c, H, K, P + K), complete rows for softmax."""
    if problem.softmax or not problem.joint:
        return weights(part.logits, part.bias, problem.options)
    return laplace(part.logits.to(problem.wide)) * _joint_laplace_factor(problem, part, chunk)


def _joint_laplace_factor(problem: Problem, part: _Intra, chunk: Chunk) -> Tensor:
    factor = key_multiplicity(part.bias, False)
    divisor = own_divisor(problem)
    if divisor is None:
        return factor
    by_slot = divisor[chunk.images].gather(1, chunk.ids.flatten(1)).view_as(chunk.ids)  # b, c, K
    return factor / by_slot[:, :, None, :, None]


def mixing_logit(problem: Problem, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
    """Of step 5, for a chunk's own clusters: routing queries (b, c, H, K, D), logits before the gate, the gate."""
    queries = problem.gather(problem.q_route, chunk)
    surrogates = problem.surrogates[:, chunk.clusters].transpose(0, 1)  # c, H, D
    raw = (queries @ surrogates[None, ..., None])[..., 0].to(problem.wide) * problem.options.scale  # b, c, H, K
    return queries, raw, gate(problem.gather_phi(chunk))[:, :, None]


def own_clusters(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Output of every slot's own cluster (B, M*K, H, D), and the slot's logit (B, M*K, H)."""
    generator = torch.Generator(problem.q.device).manual_seed(seed)
    shape = (problem.batch, problem.num_slots, problem.heads)
    out = problem.q.new_empty(*shape, problem.head_dim)
    logit = problem.q.new_empty(shape, dtype=problem.wide)
    for chunk in problem.cluster_chunks(_elements(problem)):
        part = _intra(problem, chunk)
        weight = _intra_weights(problem, part, chunk)
        if problem.joint:
            own = (part.logits + part.bias).logsumexp(-1)  # b, c, H, K
        else:
            _, raw, sharpness = mixing_logit(problem, chunk)
            own = raw * sharpness
        own = own.masked_fill(~chunk.valid[:, :, None], MASKED)
        if problem.options.dropout_p:
            weight = weight * dropout_mask(weight, problem.options.dropout_p, generator)
        at = (chunk.images, problem.slots(chunk))
        out[at] = (weight.to(problem.dtype) @ part.values).transpose(2, 3).flatten(1, 2)
        logit[at] = own.transpose(2, 3).flatten(1, 2)
    return out, logit


def mixing_divisor(problem: Problem, like: Tensor) -> Tensor | float:
    """With ``laplace_norm`` the number of clusters that a token's mixing runs over, by slot (B, M*K, 1)."""
    if not problem.options.laplace_norm:
        return 1.0
    if problem.options.summaries:
        return (problem.counts > 0).sum(1).clamp(min=1).to(problem.wide)[:, None, None]
    own = problem.reduce(problem.valid.flatten(1).to(problem.wide), "sum").clamp(min=1)  # B, N
    return own.gather(1, problem.ids.flatten(1))[..., None]


def own_divisor(problem: Problem) -> Tensor | None:
    """With ``laplace_norm`` in joint mixing the tokens that a token's weights stand for, (B, N); else None."""
    if problem.softmax or not problem.joint or not problem.options.laplace_norm:
        return None
    if problem.options.summaries:
        seen = problem.counts.sum(1, keepdim=True).expand(-1, problem.num_tokens)
    else:
        seen = problem.reduce(problem.counts.repeat_interleave(problem.cluster_size, 1), "sum")
    return (seen + problem.num_prefix).clamp(min=1)


class OwnGradient:
    """Backward of the own clusters: fills q, k, v of the slots, and for the paper's mixing the mixing's own part."""

    def __init__(self, problem: Problem, slots: SlotGradients, grad: Tensor, lse: Tensor, delta: Tensor) -> None:
        self.problem, self.slots, self.grad = problem, slots, grad
        self.lse, self.delta = lse, delta
        self.prefix_grad: tuple[Tensor | None, Tensor | None] = (None, None)
        if problem.prefix_k is not None and problem.prefix_v is not None:
            self.prefix_grad = (
                torch.zeros_like(problem.prefix_k, dtype=problem.wide),
                torch.zeros_like(problem.prefix_v, dtype=problem.wide),
            )
        shape = (problem.batch, problem.num_slots)
        self.has_own_route = not problem.joint and problem.q_route is not problem.q
        route = (*shape, problem.heads, problem.head_dim) if self.has_own_route else (0,)
        self.mix_query_grad = problem.q.new_empty(route)  # else it goes to q, slot by slot
        self.mix_gate_grad = problem.q.new_empty(shape, dtype=problem.wide)
        self.mix_surrogate_grad = torch.zeros_like(problem.surrogates, dtype=problem.wide)
        self.divisor = 1.0 if problem.joint or problem.softmax else mixing_divisor(problem, lse)

    def run(self, seed: int) -> None:
        """Go through all chunks of clusters, in the order of the forward pass."""
        generator = torch.Generator(self.problem.q.device).manual_seed(seed)
        for chunk in self.problem.cluster_chunks(self.problem.backward_factor * _elements(self.problem)):
            part = _intra(self.problem, chunk)
            weight = _intra_weights(self.problem, part, chunk)
            p = self.problem.options.dropout_p
            mask = dropout_mask(weight, p, generator) if p else 1.0
            grad = self.problem.gather_grad(self.grad, chunk)  # b, c, H, K, D
            by_slot = [self._by_slot(x, chunk) for x in (self.lse, self.delta)]  # b, c, H, K
            if self.problem.joint:
                self._joint(chunk, part, weight, mask, grad, by_slot)
            else:
                self._paper(chunk, part, weight, mask, grad, by_slot)

    def _by_slot(self, x: Tensor, chunk: Chunk) -> Tensor:
        ids = chunk.ids.flatten(1)[..., None].expand(-1, -1, self.problem.heads)
        return x[chunk.images].gather(1, ids).view(*chunk.ids.shape, self.problem.heads).transpose(2, 3)

    def _joint(
        self, chunk: Chunk, part: _Intra, weight: Tensor, mask: Tensor | float, grad: Tensor, by_slot: list[Tensor]
    ) -> None:
        problem = self.problem
        lse, delta = by_slot
        dw = (grad @ part.values.transpose(-1, -2)).to(problem.wide) * mask
        if problem.softmax:
            whole = torch.exp(part.logits + part.bias - lse[..., None])
            dl = whole * (dw - delta[..., None])
        else:
            whole = weight
            dl = laplace_derivative(part.logits.to(problem.wide)) * _joint_laplace_factor(problem, part, chunk) * dw
        # a masked or padded query has no slot of its own: nothing flows back from it
        real = chunk.valid[:, :, None, :, None]
        self._put(chunk, part, dl * real, whole * mask * real, grad)

    def _paper(
        self, chunk: Chunk, part: _Intra, weight: Tensor, mask: Tensor | float, grad: Tensor, by_slot: list[Tensor]
    ) -> None:
        problem = self.problem
        lse, delta = by_slot
        out = (weight * mask).to(problem.dtype) @ part.values  # b, c, H, K, D
        queries, raw, sharpness = mixing_logit(problem, chunk)
        real = chunk.valid[:, :, None]
        logit = (raw * sharpness).masked_fill(~real, MASKED)
        d_mix = (grad.to(problem.wide) * out.to(problem.wide)).sum(-1)  # b, c, H, K: gradient of the mixing weight
        if problem.softmax:
            mix = torch.exp(logit - lse)
            d_logit = mix * (d_mix - delta)
        else:
            divisor = self._divisor(chunk)
            mix = laplace(logit) / divisor * real
            d_logit = laplace_derivative(logit) / divisor * d_mix * real
        d_out = grad * mix[..., None].to(problem.dtype)
        dw = (d_out @ part.values.transpose(-1, -2)).to(problem.wide) * mask
        dl = logits_gradient(dw, weight, part.logits, part.bias, problem.options)
        at = (chunk.images, problem.slots(chunk))
        self.mix_gate_grad[at] = (d_logit * raw).sum(2).flatten(1)
        draw = (d_logit * sharpness * problem.options.scale).to(problem.dtype)  # b, c, H, K
        surrogates = problem.surrogates[:, chunk.clusters].transpose(0, 1)  # c, H, D
        route = draw[..., None] * surrogates[None, :, :, None]
        if self.has_own_route:
            self.mix_query_grad[at] = route.transpose(2, 3).flatten(1, 2)
        self._put(chunk, part, dl, weight * mask, d_out, 0.0 if self.has_own_route else route)
        self.mix_surrogate_grad[:, chunk.clusters] += (draw[..., None, :] @ queries)[..., 0, :].sum(0).transpose(0, 1)

    def _divisor(self, chunk: Chunk) -> Tensor | float:
        if isinstance(self.divisor, float):
            return self.divisor
        if self.divisor.shape[1] == 1:
            return self.divisor[chunk.images][..., None]
        part = self.divisor[chunk.images, self.problem.slots(chunk), 0]
        return part.reshape(chunk.ids.shape)[:, :, None]

    def _put(
        self, chunk: Chunk, part: _Intra, dl: Tensor, weight: Tensor, grad: Tensor, more: Tensor | float = 0.0
    ) -> None:
        """Attention backward: dl, weight (b, c, H, K, keys); grad of the output, more of q's, (b, c, H, K, D)."""
        problem = self.problem
        dl = dl.to(problem.dtype) * problem.options.scale
        dq, dk = dl @ part.keys, dl.transpose(-1, -2) @ part.q
        dv = weight.to(problem.dtype).transpose(-1, -2) @ grad
        if not problem.joint and problem.num_prefix:
            for total, own in zip(self.prefix_grad, (dk, dv), strict=True):
                if total is not None:
                    total[chunk.images] += own[..., : problem.num_prefix, :].sum(1)
            dk, dv = dk[..., problem.num_prefix :, :], dv[..., problem.num_prefix :, :]
        self.slots.q.put(chunk, (dq + more).transpose(2, 3))
        self.slots.k.put(chunk, dk.transpose(2, 3))
        self.slots.v.put(chunk, dv.transpose(2, 3))
