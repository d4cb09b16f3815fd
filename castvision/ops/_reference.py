"""The dense oracle: CAST attention written down as its definition, from the membership of every token and cluster.

Slow (every weight of every pair exists) and obvious; differentiable by autograd; exact in float64. Every fast path is
tested against it. Shapes inside: member (B, M, N) bool, logits (B, H, N, ...).
"""

from __future__ import annotations

import torch
from torch import Tensor

from castvision.ops._functions import gate, laplace


def cast_attention(  # noqa: PLR0913 - mirrors the public function
    q: Tensor,
    k: Tensor,
    v: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    num_prefix_tokens: int,
    q_route: Tensor | None,
    k_route: Tensor | None,
    token_mask: Tensor | None,
    scale: float,
    mixing: str,
    activation: str,
    laplace_norm: bool,
    summaries: bool,
) -> Tensor:
    """Output (B, H, P + N, D). q, k, v carry P prefix tokens first; q_route and k_route do not."""
    p = num_prefix_tokens
    real = torch.ones(q.shape[0], q.shape[2] - p, dtype=torch.bool, device=q.device)
    real = real if token_mask is None else token_mask
    member = _membership(index, real)
    rows = (q[:, :, p:], k[:, :, p:], v[:, :, p:], k[:, :, :p], v[:, :, :p])
    q_route = rows[0] if q_route is None else q_route
    k_route = rows[1] if k_route is None else k_route
    f = _Function(activation, laplace_norm)
    a_key = (k_route @ surrogates.transpose(1, 2)).transpose(2, 3) * gate(-phi).transpose(1, 2)[:, None] * scale
    if mixing == "joint":
        out = _joint(*rows, a_key, member, f, scale, summaries)
    else:
        a_query = q_route @ surrogates.transpose(1, 2) * gate(phi)[:, None] * scale  # B, H, N, M
        out = _surrogate(*rows, a_key, a_query, member, f, scale, summaries)
    out = out.masked_fill(~real[:, None, :, None], 0)
    out = out + 0 * (surrogates.sum() + phi.sum())  # zero, not None, where they cannot act
    if not p:
        return out
    seen = torch.cat([real.new_ones(real.shape[0], p), real], 1)[:, None, None]
    first = f(q[:, :, :p] @ k.transpose(2, 3) * scale, seen.to(q.dtype).expand(-1, -1, p, -1)) @ v
    return torch.cat([first, out], 2)


class _Function:
    """f over the last axis, with the number of times each key counts (0: not at all)."""

    def __init__(self, activation: str, normalised: bool) -> None:
        self.activation, self.normalised = activation, normalised

    def __call__(self, logits: Tensor, count: Tensor, *, softmax: bool = False) -> Tensor:
        if softmax or self.activation == "softmax":
            biased = logits.masked_fill(count == 0, -torch.inf)
            top = biased.amax(-1, keepdim=True).detach()
            e = torch.exp(biased - top.masked_fill(top.isinf(), 0)) * count
            total = e.sum(-1, keepdim=True)
            return e / total.masked_fill(total == 0, 1)
        weight = laplace(logits) * count
        if not self.normalised:
            return weight
        total = count.sum(-1, keepdim=True)
        return weight / total.masked_fill(total == 0, 1)


def _membership(index: Tensor, real: Tensor) -> Tensor:
    """True where a real token sits in a cluster, (B, M, N)."""
    num_tokens = real.shape[1]
    member = torch.zeros(*index.shape[:2], num_tokens + 1, dtype=torch.bool, device=index.device)
    member.scatter_(2, index, True)
    return member[..., :num_tokens] & real[:, None]


def _joint(  # noqa: PLR0913
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, a_key: Tensor, member: Tensor, f: _Function,
    scale: float, summaries: bool,
) -> Tensor:  # fmt: skip
    inside = member.to(q.dtype)
    size = inside.sum(2)  # B, M: n_c
    p = f(a_key, inside[:, None].expand_as(a_key), softmax=True)  # B, H, M, N
    summary_k, summary_v = p @ k, p @ v
    together = inside.transpose(1, 2) @ inside  # B, N, N: clusters that hold both
    foreign = (1 - inside.transpose(1, 2)) * size[:, None]  # B, N, M: tokens that a foreign summary stands for
    keys, values = torch.cat([prefix_k, k], 2), torch.cat([prefix_v, v], 2)
    count = torch.cat([together.new_ones(*together.shape[:2], prefix_k.shape[2]), together], 2)
    if summaries:
        keys, values = torch.cat([keys, summary_k], 2), torch.cat([values, summary_v], 2)
        count = torch.cat([count, foreign], 2)
    logits = q @ keys.transpose(2, 3) * scale
    return f(logits, count[:, None].expand_as(logits)) @ values


def _surrogate(  # noqa: PLR0913
    q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor, prefix_v: Tensor, a_key: Tensor, a_query: Tensor, member: Tensor,
    f: _Function, scale: float, summaries: bool,
) -> Tensor:  # fmt: skip
    inside = member.to(q.dtype)
    keys, values = torch.cat([prefix_k, k], 2), torch.cat([prefix_v, v], 2)
    logits = (q @ keys.transpose(2, 3) * scale)[:, :, None]  # B, H, 1, N, P + N
    count = torch.cat([inside.new_ones(*inside.shape[:2], prefix_k.shape[2]), inside], 2)  # B, M, P + N
    intra = f(logits, count[:, None, :, None].expand(-1, logits.shape[1], -1, logits.shape[3], -1)) @ values[:, :, None]
    summary = f(a_key, inside[:, None].expand_as(a_key)) @ v  # B, H, M, D
    own = inside.transpose(1, 2)[:, None]  # B, 1, N, M
    counted = (inside.sum(2) > 0).to(q.dtype)[:, None, None] if summaries else own  # clusters that mixing runs over
    mix = f(a_query, counted.expand_as(a_query))
    out = torch.einsum("bhnm,bhmnd->bhnd", mix * own, intra)
    return out + (mix * (1 - own)) @ summary if summaries else out
