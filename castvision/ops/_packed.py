"""Joint mixing over a partition, the default: one attention call per chunk of clusters.

The K queries of a cluster see [P prefix ; K members ; M summaries] under a bias that depends on the cluster alone:
log n_c for a summary, MASKED for the cluster's own and for padding. Backward recomputes each chunk's weights, so that
only the operands, the output and its log-sum-exp are kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from castvision.ops._functions import MASKED
from castvision.ops._problem import Chunk, Problem, TokenSum, dropout_mask, gather_rows
from castvision.ops._summaries import SlotGradients, summarise
from castvision.ops._weights import logits_gradient, weights

Summary = tuple[Tensor, Tensor] | None


class Pack(NamedTuple):
    """One chunk: q (b, c, H, K, D), keys and values (b, c, H, P + K + M, D), bias (b, c, 1, 1, P + K + M)."""

    q: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor


def forward(problem: Problem, seed: int) -> tuple[Tensor, Tensor]:
    """Attention output by token, (B, N, H, D), and log-sum-exp (B, N, H); zeros where backward can do without."""
    generator = torch.Generator(problem.q.device).manual_seed(seed)
    packer = _Packer(problem, summarise(problem) if problem.options.summaries else None)
    out = TokenSum(problem, problem.heads, problem.head_dim)
    lse = TokenSum(problem, problem.heads, dtype=problem.wide)
    if not problem.is_flash:
        lse.rows.zero_()
    for chunk in problem.cluster_chunks(_elements(problem)):
        pack = packer.pack(chunk)
        if problem.is_flash:
            part, part_lse = _flash(problem, pack)
            lse.put(chunk, part_lse.transpose(2, 3))
        else:
            part = _weights(problem, pack, generator)[1] @ pack.values
        out.put(chunk, part.transpose(2, 3))
    return problem.zero_masked(out.total()), lse.total()


def backward(problem: Problem, grad: Tensor, out: Tensor, lse: Tensor, seed: int) -> dict[str, Tensor | None]:
    """Gradients by operand name from that of the output; grad, out: (B, N, H, D), lse: (B, N, H)."""
    generator = torch.Generator(problem.q.device).manual_seed(seed)
    grad = problem.zero_masked(grad)
    summary = summarise(problem) if problem.options.summaries else None
    packer = _Packer(problem, summary)
    slots = SlotGradients(problem)
    shared = _SharedGradients(problem, summary)
    members = slice(problem.num_prefix, problem.num_prefix + problem.cluster_size)
    for chunk in problem.cluster_chunks(problem.backward_factor * _elements(problem)):
        pack = packer.pack(chunk)
        part = problem.gather_grad(grad, chunk)
        if problem.is_flash:
            own_lse = gather_rows(lse, chunk).transpose(2, 3).masked_fill(~chunk.valid[:, :, None], -MASKED)
            dq, dk, dv = _flash_gradient(problem, pack, part, problem.gather(out, chunk), own_lse)
        else:
            dq, dk, dv = _pack_gradient(problem, pack, part, generator)
        slots.q.put(chunk, dq.transpose(2, 3))
        slots.k.put(chunk, dk[..., members, :].transpose(2, 3))
        slots.v.put(chunk, dv[..., members, :].transpose(2, 3))
        shared.add(chunk, dk, dv)
    if summary is None:
        slots.without_summaries()
    else:
        slots.add_summaries(shared.keys[:, :, problem.num_prefix :], shared.values[:, :, problem.num_prefix :])
    grads = slots.totals()
    if problem.num_prefix:
        grads["prefix_k"] = shared.keys[:, :, : problem.num_prefix]
        grads["prefix_v"] = shared.values[:, :, : problem.num_prefix]
    return grads


class _SharedGradients:
    """Gradients of the keys and values that every cluster sees: prefix, then summaries, (B, H, P + M, D)."""

    def __init__(self, problem: Problem, summary: Summary) -> None:
        count = problem.num_prefix + (problem.num_clusters if summary else 0)
        shape = (problem.batch, problem.heads, count, problem.head_dim)
        self.keys, self.values = (problem.q.new_zeros(shape, dtype=problem.wide) for _ in range(2))
        self.prefix, self.members_end = problem.num_prefix, problem.num_prefix + problem.cluster_size

    def add(self, chunk: Chunk, dk: Tensor, dv: Tensor) -> None:
        """Sum a chunk's part (b, c, H, P + K + M, D) over its clusters."""
        for total, part in ((self.keys, dk), (self.values, dv)):
            total[chunk.images, :, : self.prefix] += part[..., : self.prefix, :].sum(1)
            total[chunk.images, :, self.prefix :] += part[..., self.members_end :, :].sum(1)


def _elements(problem: Problem) -> int:
    """Workspace of one cluster: its weights, or its keys where these are larger."""
    keys = problem.num_prefix + problem.cluster_size + problem.num_clusters
    return problem.heads * keys * max(problem.cluster_size, problem.head_dim)


class _Packer:
    """Packs chunks into buffers that live as long as the call; what all clusters see is copied once an image."""

    def __init__(self, problem: Problem, summary: Summary) -> None:
        self.problem, self.summary = problem, summary
        self.images: slice | None = None

    def pack(self, chunk: Chunk) -> Pack:
        """The chunk's operands; keys and values are valid until the next call."""
        problem = self.problem
        if chunk.images != self.images:
            self._begin(chunk)
        members = slice(problem.num_prefix, problem.num_prefix + problem.cluster_size)
        keys, values, bias = (x[:, : chunk.ids.shape[1]] for x in self.buffers)
        keys[..., members, :] = problem.gather(problem.k, chunk)
        values[..., members, :] = problem.gather(problem.v, chunk)
        bias[..., members] = problem.slot_bias(chunk)
        if self.summary is not None:
            bias[..., members.stop :] = _summary_bias(problem, chunk)
        return Pack(problem.gather(problem.q, chunk), keys, values, bias[:, :, None, None])

    def _begin(self, chunk: Chunk) -> None:
        """Make the buffers for the chunks of some images and fill in prefix and summaries."""
        problem = self.problem
        self.images = chunk.images
        images, clusters = chunk.ids.shape[:2]
        rows = problem.num_prefix + problem.cluster_size + (problem.num_clusters if self.summary else 0)
        shape = (images, clusters, rows, problem.heads, problem.head_dim)  # rows as the operands have them: copies run
        keys, values = (problem.q.new_empty(shape).transpose(2, 3) for _ in range(2))
        bias = keys.new_zeros((images, clusters, rows), dtype=problem.wide)
        self.buffers = keys, values, bias
        if problem.prefix_k is not None and problem.prefix_v is not None:
            keys[..., : problem.num_prefix, :] = problem.prefix_k[chunk.images, None]
            values[..., : problem.num_prefix, :] = problem.prefix_v[chunk.images, None]
        if self.summary is not None:
            keys[..., rows - problem.num_clusters :, :] = self.summary[0][chunk.images, None]
            values[..., rows - problem.num_clusters :, :] = self.summary[1][chunk.images, None]


def _summary_bias(problem: Problem, chunk: Chunk) -> Tensor:
    """Log n_c of every cluster, MASKED for the own one, (b, c, M)."""
    count = chunk.ids.shape[1]
    bias = problem.log_counts[chunk.images, None].repeat(1, count, 1)
    bias.diagonal(chunk.clusters.start, 1, 2).fill_(MASKED)
    return bias


def _flash(problem: Problem, pack: Pack) -> tuple[Tensor, Tensor]:
    """Output of a chunk (b, c, H, K, D) and its log-sum-exp (b, c, H, K) by torch's fused attention."""
    q, keys, values, bias = _flat(pack)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q, keys, values, 0.0, False, attn_mask=bias, scale=problem.options.scale
    )
    return out.view(pack.q.shape), lse.view(pack.q.shape[:-1])


def _flash_gradient(
    problem: Problem, pack: Pack, grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, keys and values of a chunk; grad, out: (b, c, H, K, D), lse: (b, c, H, K)."""
    q, keys, values, bias = _flat(pack)
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad.flatten(0, 1), q, keys, values, out.flatten(0, 1), lse.flatten(0, 1), 0.0, False,
        attn_mask=bias, scale=problem.options.scale,
    )  # fmt: skip
    dq, dk, dv = (x.unflatten(0, pack.q.shape[:2]) for x in grads)
    return dq, dk, dv


def _flat(pack: Pack) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The pack with one batch axis, b * c, and the bias repeated for all queries."""
    q, keys, values, bias = (x.flatten(0, 1) for x in pack)
    return q, keys, values, bias.expand(-1, -1, q.shape[2], -1)


def _weights(problem: Problem, pack: Pack, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Logits, weights in the values' dtype (dropped out), weights in full, and the dropout mask."""
    logits = (pack.q * problem.options.scale) @ pack.keys.transpose(-1, -2)  # b, c, H, K, P + K + M
    weight = weights(logits, pack.bias, problem.options)
    if not problem.options.dropout_p:
        return logits, weight.to(problem.dtype), weight, None
    mask = dropout_mask(weight, problem.options.dropout_p, generator)
    return logits, (weight * mask).to(problem.dtype), weight, mask


def _pack_gradient(
    problem: Problem, pack: Pack, grad: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, keys and values of a chunk from that of its output, (b, c, H, K, D)."""
    logits, dropped, weight, mask = _weights(problem, pack, generator)
    dv = dropped.transpose(-1, -2) @ grad
    dw = grad @ pack.values.transpose(-1, -2)
    if mask is not None:
        dw = dw * mask
    dl = logits_gradient(dw, weight, logits, pack.bias, problem.options).to(problem.dtype) * problem.options.scale
    return dl @ pack.keys, dl.transpose(-1, -2) @ pack.q, dv
