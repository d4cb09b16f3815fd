"""The dense oracles: attention written down as its definition, every weight of every pair of tokens.

Slow and obvious; differentiable by autograd; exact in float64. Every fast path is tested against it.
"""

import torch
from torch import Tensor

from castvision.ops.near_far import is_sparse
from castvision.ops.options import AttentionOptions, Operands
from castvision.ops.paper import gate, laplace


def near_far(
    x: Operands, windows: list[Tensor], labels: Tensor | None, num_clusters: int, center: Tensor | None
) -> Tensor:
    """Rows of N patch tokens, (B, N, H, D); arguments as :func:`castvision.ops.near_far.near_far`."""
    q, k, v, prefix_k, prefix_v, token_mask, scale = x
    batch, num_tokens = q.shape[:2]
    real = torch.ones(batch, num_tokens, dtype=torch.bool) if token_mask is None else token_mask
    rows = []
    for b in range(batch):
        window = torch.full((num_tokens + 1,), -1, device=q.device)
        for number, members in enumerate(m for index in windows for m in index[b % index.shape[0]]):
            window[members] = number
        near = real[b] & (window[:-1, None] == window[:-1])  # N, N
        logits = torch.einsum("nhd,mhd->hnm", q[b], k[b]).mul(scale).masked_fill(~near, -torch.inf)
        terms = v[b].transpose(0, 1)[:, None].expand(-1, num_tokens, -1, -1)  # H, N, keys, D
        if prefix_k is not None and prefix_v is not None:
            logits = torch.cat([torch.einsum("nhd,phd->hnp", q[b], prefix_k[b]) * scale, logits], 2)
            terms = torch.cat([prefix_v[b].transpose(0, 1)[:, None].expand(-1, num_tokens, -1, -1), terms], 2)
        if labels is not None:
            member = real[b] & (labels[b] == torch.arange(num_clusters, device=q.device)[:, None])  # M, N
            left = member & (window[:-1, None, None] != window[:-1])  # N, M, N: of whom each token's window leaves out
            middle = torch.zeros_like(q[b, 0]) if center is None else center[b]
            far, values = _summaries(q[b], k[b], v[b], member, left, middle, scale)
            logits, terms = torch.cat([logits, far], 2), torch.cat([terms, values], 2)
        weight = logits.masked_fill(~real[b][:, None], 0).softmax(2)  # H, N, keys; nobody looks at a masked row
        rows.append((weight[..., None] * terms).sum(2).transpose(0, 1).masked_fill(~real[b][:, None, None], 0))
    return torch.stack(rows)


def _summaries(
    q: Tensor, k: Tensor, v: Tensor, member: Tensor, left: Tensor, middle: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Logits (H, N, M), -inf for nobody, and values (H, N, M, D) of each cluster outside each token's window."""
    exponent = torch.einsum("nhd,hd->hn", k, middle) * scale
    whole = exponent[:, None].masked_fill(~member, -torch.inf)  # H, M, N
    outside = exponent[:, None, None].masked_fill(~left, -torch.inf)  # H, N, M, N
    anyone = left.any(2)  # N, M
    outside = torch.where(anyone[..., None], outside, 0)
    log_z, log_whole = outside.logsumexp(3), whole.logsumexp(2)[:, None]
    sparse = is_sparse(torch.exp(log_z - log_whole), torch.ones_like(log_z))
    p = torch.where((sparse & anyone)[..., None], whole[:, None].expand_as(outside), outside).softmax(3)  # H, N, M, N
    mean_k, mean_v = (torch.einsum("hnms,shd->hnmd", p, x) for x in (k, v))
    logits = torch.einsum("nhd,hnmd->hnm", q - middle, mean_k) * scale + log_z
    return logits.masked_fill(~anyone, -torch.inf), mean_v


def paper_attention(
    x: Operands,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    q_route: Tensor | None,
    k_route: Tensor | None,
    options: AttentionOptions,
) -> Tensor:
    """Rows of N patch tokens, (B, N, H, D); arguments as :func:`castvision.ops.paper.paper_attention`."""
    q, k, v, prefix_k, prefix_v, token_mask, scale = x
    real = torch.ones(v.shape[:2], dtype=torch.bool, device=v.device) if token_mask is None else token_mask
    member = _membership(index, real).to(v.dtype)  # B, M, N
    own = member.transpose(1, 2)[:, None]  # B, 1, N, M
    seen = member
    keys, values = k, v
    if prefix_k is not None and prefix_v is not None:
        keys, values = torch.cat([prefix_k, k], 1), torch.cat([prefix_v, v], 1)
        seen = torch.cat([member.new_ones(*member.shape[:2], prefix_k.shape[1]), member], 2)
    # step 3, for every token in every cluster: B, H, M, N, P + N
    logits = torch.einsum("bnhd,bphd->bhnp", q, keys)[:, :, None] * scale
    intra = torch.einsum("bhmnp,bphd->bhmnd", _f(logits, seen[:, None, :, None], options), values)
    # step 4: B, H, M, N
    a_key = torch.einsum("bnhd,hmd->bhmn", k if k_route is None else k_route, surrogates)
    share = _f(a_key * gate(-phi).transpose(1, 2)[:, None] * scale, member[:, None], options)
    summary = torch.einsum("bhmn,bnhd->bhmd", share, v)
    # step 5: B, H, N, M
    a_query = torch.einsum("bnhd,hmd->bhnm", q if q_route is None else q_route, surrogates) * gate(phi)[:, None] * scale
    counted = own if options.summaries == "none" else (member.sum(2) > 0).to(v.dtype)[:, None, None]
    mix = _f(a_query, counted, options)
    # step 6
    out = torch.einsum("bhnm,bhmnd->bnhd", mix * own, intra)
    if options.summaries != "none":
        out = out + torch.einsum("bhnm,bhmd->bnhd", mix * (1 - own), summary)
    return out * real[..., None, None]


def _f(logits: Tensor, count: Tensor, options: AttentionOptions) -> Tensor:
    """The attention function over the last axis; ``count`` says how often each key counts, 0: not at all."""
    shape = (logits + count).shape
    logits, count = logits.expand(shape), count.expand(shape)
    if options.activation == "softmax":
        logits = logits.masked_fill(count == 0, -torch.inf)
        top = logits.amax(-1, keepdim=True).detach()
        weight = torch.exp(logits - top.masked_fill(top.isinf(), 0)) * count
    else:
        weight = laplace(logits) * count
        if not options.laplace_norm:
            return weight
    total = (weight if options.activation == "softmax" else count).sum(-1, keepdim=True)
    return weight / total.masked_fill(total == 0, 1)


def _membership(index: Tensor, real: Tensor) -> Tensor:
    """True where a real token sits in a cluster, (B, M, N)."""
    member = torch.zeros(*index.shape[:2], real.shape[1] + 1, dtype=torch.bool, device=index.device)
    return member.scatter(2, index, True)[..., :-1] & real[:, None]
