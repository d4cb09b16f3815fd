"""The paper's mixing over a partition, forward, in torch's fused attention: every token mixes all clusters, once.

Steps 3 to 5 of CAST. With softmax the mixing over clusters is attention of the N gated queries on the M surrogates,
with the summaries as values and log-sum-exp L. It counts a token's own cluster by its summary, which is then exchanged:

    out = mix + exp(own logit - L) (attention inside the own cluster - its summary)

Backward needs L and the output alone, and is that of :mod:`._merged`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.ops._functions import MASKED, gate
from castvision.ops._own import mixing_logit, own_operands
from castvision.ops._problem import Problem, TokenSum
from castvision.ops._summaries import summarise

_TEMPORARIES = 4
"""Of a chunk's size, alive at once: queries, keys, values, outputs."""


def fits(problem: Problem) -> bool:
    """Whether the two fused calls cover this problem."""
    options = problem.options
    return problem.is_flash and not problem.joint and options.summaries and options.is_partition


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """Output by token (B, N, H, D) and L (B, N, H)."""
    _, summaries = summarise(problem)  # B, H, M, D
    out = TokenSum(problem, problem.heads, problem.head_dim)
    lse = problem.q.new_empty(out.total().shape[:3])
    _mix(problem, summaries, out.total(), lse)
    size = _TEMPORARIES * problem.heads * (problem.num_prefix + problem.cluster_size) * problem.head_dim
    for chunk in problem.cluster_chunks(size):
        q, keys, values, bias = (x.flatten(0, 1) for x in own_operands(problem, chunk))
        bias = bias.expand(-1, -1, q.shape[2], -1)
        own = F.scaled_dot_product_attention(q, keys, values, attn_mask=bias, scale=problem.options.scale)
        _, raw, sharpness = mixing_logit(problem, chunk)
        by_slot = lse[chunk.images].gather(1, chunk.ids.flatten(1)[..., None].expand(-1, -1, problem.heads))
        weight = torch.exp(raw * sharpness - by_slot.view(*chunk.ids.shape, problem.heads).transpose(2, 3))
        own = own.view(*raw.shape, -1) - summaries[chunk.images, :, chunk.clusters].transpose(1, 2)[..., None, :]
        out.put(chunk, (own * weight[..., None]).transpose(2, 3), accumulate=True)
    return problem.zero_masked(out.total()), lse


def _mix(problem: Problem, summaries: Tensor, out: Tensor, lse: Tensor) -> None:
    """Attention of all tokens on the surrogates, into out (B, N, H, D) and lse (B, N, H)."""
    bias = torch.where(problem.counts > 0, 0.0, MASKED).to(problem.wide)
    for b, tokens in problem.token_chunks(problem.heads * problem.head_dim):
        q = problem.q_route[b, tokens] * gate(problem.phi[b, tokens])[:, None, None]
        part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q.transpose(0, 1)[None], problem.surrogates[None], summaries[b][None], 0.0, False,
            attn_mask=bias[b].expand(1, 1, len(q), -1), scale=problem.options.scale,
        )  # fmt: skip
        out[b, tokens] = part[0].transpose(0, 1)
        lse[b, tokens] = part_lse[0].T
