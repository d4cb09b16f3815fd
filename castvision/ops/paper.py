"""The attention of CAST as its paper defines it (arXiv 2402.04239), steps 3 to 6 of our reading of it.

    3. intra-cluster   R_intra[c] = f(q_c k_c' scale) v_c                          prefix keys stand before the members
    4. summary         R_sum[c] = f(S_c k_c' gate(-phi) scale) v_c                 one query, the cluster's surrogate
    5. inter-cluster   W = f(q S' gate(phi) scale)                                 over all clusters
    6. combination     R[n] = sum over own c of W[n, c] R_intra[c, n] + sum over other c of W[n, c] R_sum[c]

Steps 3, 4 and 5 are calls of :func:`attend`, so that nothing of size H * N * M exists in eager mode. Step 5 attends to
all clusters, own ones included, with the summaries as values; an own summary is then exchanged:

    R[n] = shared[n] + sum over own c of W[n, c] (R_intra[c, n] - R_sum[c]),    W[n, c] = exp(logit - lse[n])

This subtraction is harmless where one that leaves a key out of a softmax is not: an own cluster keeps its weight, so
nothing is divided by a small remainder, and an error of W only shifts between two means of the same cluster's values.
Leaving own clusters out by a mask instead would take N * M elements, since Top-K knows no shorter form of membership.

f is the softmax, or elementwise the Laplace function of MEGA (arXiv 2209.10655, eq. 16), which CAST offers beside it.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from castvision.ops.arithmetic import arithmetic_dtype, is_eager, wide_dtype
from castvision.ops.options import AttentionOptions, Operands

WORKSPACE = 1 << 20
"""Attention weights held at once in eager mode: 4 MiB of fp32, so that a CPU's last cache holds them."""


def laplace(x: Tensor) -> Tensor:
    """Elementwise f(x) = (1 + erf((x - mean) / (std * sqrt 2))) / 2, mean = sqrt(1/2), std = sqrt(1 / (4 pi))."""
    # 1 / (std sqrt 2) = sqrt(2 pi)
    return torch.erf((x - math.sqrt(0.5)) * math.sqrt(2 * math.pi)).add(1).mul(0.5)


def gate(x: Tensor) -> Tensor:
    """softplus(x) + 1: at least 1, so that it can only sharpen the logits it multiplies."""
    return F.softplus(x) + 1


def paper_attention(
    x: Operands,
    surrogates: Tensor,
    phi: Tensor,
    index: Tensor,
    is_partition: bool,
    q_route: Tensor | None,
    k_route: Tensor | None,
    options: AttentionOptions,
    dropout_p: float,
) -> Tensor:
    """CAST attention of the patch tokens, differentiable in every floating operand.

    Args:
        x: Queries and keys of step 3, and values; prefix keys are seen in step 3 of every cluster. Masked tokens act as
            padding, whatever they hold.
        surrogates: Surrogate tokens, (H, M, D).
        phi: Whether a token leans on its query or key side, (B, N, 1).
        index: Tokens of each cluster, (B, M, K) int64, padding = N; a token may sit in no, one or several clusters.
        is_partition: No token sits in two clusters.
        q_route: Queries of step 5, (B, N, H, D), e.g. before rotary positions; None: q.
        k_route: Keys of step 4, (B, N, H, D); None: k.
        options: ``activation``, ``laplace_norm`` and ``summaries`` ("surrogate_weighted", or "none": step 5 runs over
            own clusters only, and a token without one gets zeros).
        dropout_p: Dropout of the weights of step 3, drawn from torch's own state.

    Returns:
        Output (B, N, H, D) in v's dtype, zeros for masked tokens.
    """
    q, k, v, token_mask, scale = x.q, x.k, x.v, x.token_mask, x.scale
    dtype = arithmetic_dtype(v)
    wide = wide_dtype(dtype)
    num_tokens = v.shape[1]
    ids = index.clamp(max=num_tokens - 1)  # padding repeats the last token and is left out by `valid`
    valid = index < num_tokens
    lean = phi.to(wide)[..., None]  # B, N, 1, 1
    q_mix, k_mix = q if q_route is None else q_route, k if k_route is None else k_route
    if token_mask is not None:
        valid = valid & _take(token_mask, ids)
        blank = ~token_mask[..., None, None]
        lean, v = lean.masked_fill(blank, 0.0), v.masked_fill(blank, 0.0)
        q, k = q.masked_fill(blank, 0.0), k.masked_fill(blank, 0.0)
        q_mix, k_mix = q_mix.masked_fill(blank, 0.0), k_mix.masked_fill(blank, 0.0)
    # steps 4 and 5 in fp32 throughout: own logits must be those of the log-sum-exp they are compared with
    q_mix = q_mix.to(wide) * (gate(lean) * scale)
    k_mix = k_mix.to(wide) * (gate(-lean) * scale)
    surrogate = surrogates.transpose(0, 1).to(wide)  # M, H, D
    own_logit = (_take(q_mix, ids) * surrogate[:, None]).sum(-1)  # B, M, K, H
    members_v = _take(v.to(dtype), ids)
    result = _intra_cluster(
        _take(q.to(dtype) * scale, ids), _take(k.to(dtype), ids), members_v, x.prefix_k, x.prefix_v, valid, options,
        dropout_p,
    )  # fmt: skip
    if options.summaries == "none":
        weight = _own_weights(own_logit, index, valid, num_tokens, is_partition, options)
        out = _sum_by_token(result * weight[..., None].to(dtype), index, num_tokens, is_partition)
    else:
        summary = _summaries(surrogate, _take(k_mix, ids), members_v, valid, options)
        shared, weight = _inter_cluster(q_mix, surrogate, summary, own_logit, ids, valid, options)
        exchange = (result - summary[:, :, None]) * weight[..., None].to(dtype)
        out = shared + _sum_by_token(exchange, index, num_tokens, is_partition)
    if token_mask is not None:
        out = out.masked_fill(~token_mask[..., None, None], 0.0)
    return out.to(v.dtype)


def _intra_cluster(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    valid: Tensor,
    options: AttentionOptions,
    dropout_p: float,
) -> Tensor:
    """Step 3 of all members, (B, M, K, H, D)."""
    batch, clusters, size, heads, width = q.shape
    seen = valid
    if prefix_k is not None and prefix_v is not None:
        many = prefix_k.shape[1]
        shape = [batch, clusters, many, heads, width]
        k = torch.cat([prefix_k[:, None].to(k.dtype).expand(shape), k], 2)
        v = torch.cat([prefix_v[:, None].to(v.dtype).expand(shape), v], 2)
        seen = torch.cat([torch.ones([batch, clusters, many], dtype=torch.bool, device=valid.device), valid], 2)
    bias = _bias(seen, options, wide_dtype(q.dtype)).flatten(0, 1)[:, None, None]
    grouped = [x.flatten(0, 1).transpose(1, 2) for x in [q, k, v]]  # B * M, H, K, D
    out, _ = attend(grouped[0], grouped[1], grouped[2], bias, options.activation, dropout_p)
    return out.transpose(1, 2).reshape(batch, clusters, size, heads, width)


def _summaries(surrogate: Tensor, k: Tensor, v: Tensor, valid: Tensor, options: AttentionOptions) -> Tensor:
    """Step 4, (B, M, H, D); zeros for a cluster without a real token. k comes gated and scaled."""
    batch, clusters, _, heads, width = k.shape
    query = surrogate.expand(batch, clusters, heads, width).flatten(0, 1)[:, :, None]  # B * M, H, 1, D
    bias = _bias(valid, options, k.dtype).flatten(0, 1)[:, None, None]
    keys, values = k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1).transpose(1, 2)
    out, _ = attend(query, keys, values, bias, options.activation)
    return out.reshape(batch, clusters, heads, width)


def _inter_cluster(
    q: Tensor, surrogate: Tensor, summary: Tensor, own_logit: Tensor, ids: Tensor, valid: Tensor,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Step 5: all tokens on all clusters (B, N, H, D), and the weights of members' own clusters (B, M, K, H)."""
    bias = _bias(valid.any(2), options, q.dtype)  # B, M: a cluster without a real token is left out
    keys = surrogate.transpose(0, 1).expand(q.shape[0], -1, -1, -1)
    shared, lse = attend(
        q.transpose(1, 2), keys, summary.transpose(1, 2), bias[:, None, None], options.activation
    )  # fmt: skip
    if options.activation == "laplace":
        weight = (laplace(own_logit) * bias.exp()[:, :, None, None]).masked_fill(~valid[..., None], 0.0)
    else:
        # never above 1, though the two sums may round differently
        exponent = (own_logit - _take(lse.transpose(1, 2), ids)).clamp(max=0.0)
        weight = exponent.masked_fill(~valid[..., None], -math.inf).exp()
    return shared.transpose(1, 2), weight


def _own_weights(
    logit: Tensor, index: Tensor, valid: Tensor, num_tokens: int, is_partition: bool, options: AttentionOptions
) -> Tensor:
    """Step 5 over a token's own clusters alone: weights of the members, (B, M, K, H)."""
    hidden = ~valid[..., None]
    if options.activation == "laplace":
        weight = laplace(logit).masked_fill(hidden, 0.0)
        if not options.laplace_norm:
            return weight
        part = valid[..., None].to(weight.dtype)  # B, M, K, 1
    else:
        batch, _, _, heads = logit.shape
        by_token = index.flatten(1)[..., None].expand(-1, -1, heads)
        own = logit.masked_fill(hidden, -math.inf)
        top = torch.full([batch, num_tokens + 1, heads], -math.inf, dtype=logit.dtype, device=logit.device)
        top = top.scatter_reduce(1, by_token, own.detach().flatten(1, 2), "amax")
        weight = (own - top.gather(1, by_token).view(logit.shape).masked_fill(hidden, 0.0)).exp()
        part = weight
    total = _sum_by_token(part[..., None], index, num_tokens, is_partition)[..., 0]
    return weight / _take(total, index.clamp(max=num_tokens - 1)).masked_fill(hidden, 1.0)


def _bias(seen: Tensor, options: AttentionOptions, dtype: torch.dtype) -> Tensor:
    """Bias of keys: -inf for hidden ones, else 0, or minus the logarithm of how many are seen for ``laplace_norm``."""
    bias = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, -math.inf)
    if options.activation == "laplace" and options.laplace_norm:
        bias = bias - seen.sum(-1, keepdim=True).clamp(min=1).to(dtype).log()
    return bias


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, activation: str = "softmax", dropout_p: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Attention inside each of G groups, and the log-sum-exp of every row of logits.

    Eager mode works in chunks of at most ``WORKSPACE`` weights and computes them again in the backward.

    Args:
        q: Queries, (G, H, Q, D), already times the scale. Any of the tensors may be an expanded view.
        k: Keys, (G, H, S, D).
        v: Values, (G, H, S, D), maybe of another dtype.
        bias: Added to the logits, broadcastable to (G, H, Q, S) with four axes, a constant: it gets no gradient. -inf
            hides a key; one hidden from all queries may hold anything, NaN too. Laplace weights are multiplied by its
            exponential: log n makes a key count n times, -log n divides. None: no bias.
        activation: "softmax" or "laplace".
        dropout_p: Dropout of the weights.

    Returns:
        Output (G, H, Q, D) in v's dtype, and log-sum-exp (G, H, Q) in fp32 or float64, zeros for Laplace. A query that
        sees no key gets output 0 and log-sum-exp -inf, and gives no gradient. NaN in a query stays inside its group.
    """
    if not torch.jit.is_scripting():
        if is_eager() and not q.is_meta and q.shape[:3].numel() * k.shape[2] > WORKSPACE:
            return _attend_by_chunks(q, k, v, bias, activation, dropout_p)
    return _attend(q, k, v, bias, activation, dropout_p)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, activation: str, dropout_p: float
) -> tuple[Tensor, Tensor]:
    if bias is not None:  # zeros where no query sees a row, since a weight of zero times NaN would be NaN
        unseen = bias.isneginf().all(2, keepdim=True).transpose(2, 3)
        k, v = k.masked_fill(unseen, 0.0), v.masked_fill(unseen, 0.0)
    logits = (q @ k.transpose(-1, -2)).to(wide_dtype(q.dtype))
    if activation == "laplace":
        weight, lse = laplace(logits), logits.new_zeros(logits.shape[:3])
        if bias is not None:
            weight = weight * bias.exp()
    else:
        if bias is not None:
            logits = logits + bias
        top = logits.detach().amax(-1, keepdim=True)
        top = top.masked_fill(top.isneginf(), 0.0)
        exponential = torch.exp(logits - top)
        total = exponential.sum(-1, keepdim=True)
        empty = total == 0  # rows that see nothing, by selection: for the gradient too
        total = total.masked_fill(empty, 1.0)
        weight, lse = exponential / total, (top + total.log()).masked_fill(empty, -math.inf).squeeze(-1)
    weight = F.dropout(weight, dropout_p, training=dropout_p > 0)
    return weight.to(v.dtype) @ v, lse


def _attend_by_chunks(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, activation: str, dropout_p: float
) -> tuple[Tensor, Tensor]:
    """Groups, and queries of a large group, one part after the other."""
    row = q.shape[1] * k.shape[2]
    rows = max(1, min(q.shape[2], WORKSPACE // row))
    some = max(1, WORKSPACE // (row * rows))
    results: list[tuple[Tensor, Tensor]] = []
    for number, (group, keys, values) in enumerate(zip(*(torch.split(x, some) for x in (q, k, v)), strict=True)):
        first = slice(None) if bias is None or len(bias) == 1 else slice(number * some, (number + 1) * some)
        parts: list[tuple[Tensor, Tensor]] = []
        for start, queries in zip(range(0, q.shape[2], rows), torch.split(group, rows, 2), strict=True):
            within = slice(None) if bias is None or bias.shape[2] == 1 else slice(start, start + rows)
            operands = (queries, keys, values, None if bias is None else bias[first, :, within], activation, dropout_p)
            if torch.is_grad_enabled():
                part = checkpoint(_attend, *operands, use_reentrant=False, preserve_rng_state=dropout_p > 0)
            else:
                part = _attend(*operands)
            parts.append(part)
        results.append(
            parts[0] if len(parts) == 1 else (torch.cat([a for a, _ in parts], 2), torch.cat([b for _, b in parts], 2))
        )
    return torch.cat([out for out, _ in results]), torch.cat([lse for _, lse in results])


def _take(rows: Tensor, ids: Tensor) -> Tensor:
    """Rows of tokens (B, N, ...) at ids (B, M, K), as (B, M, K, ...)."""
    at = (ids + torch.arange(ids.shape[0], device=ids.device)[:, None, None] * rows.shape[1]).flatten()
    flat = rows.flatten(0, 1)
    # the backward of either adds up rows in a fixed order on its device, which that of the other does not
    taken = flat[at] if rows.is_cuda else flat.index_select(0, at)
    return taken.view(ids.shape + rows.shape[2:])


def _sum_by_token(rows: Tensor, index: Tensor, num_tokens: int, is_partition: bool) -> Tensor:
    """Sums of the members' rows (B, M, K, H, D) by token, (B, N, H, D), in a fixed order; zeros where none are."""
    batch, clusters, size, heads, width = rows.shape
    flat = index.flatten(1)
    if is_partition:
        slots = clusters * size
        slot = torch.arange(slots, device=index.device).expand(batch, slots)
        nowhere = torch.full([batch, num_tokens + 1], slots, dtype=torch.long, device=index.device)
        slot_of = nowhere.scatter(1, flat, slot)[:, :num_tokens, None]  # padding, which repeats N, is cut off
        of_token = _take(rows.flatten(1, 2), slot_of.clamp(max=slots - 1)).squeeze(2)
        return of_token.masked_fill((slot_of == slots)[..., None], 0.0)
    at = (flat + torch.arange(batch, device=index.device)[:, None] * (num_tokens + 1)).flatten()
    wide = rows.flatten(0, 2).to(wide_dtype(rows.dtype))
    zeros = torch.zeros([batch * (num_tokens + 1), heads, width], dtype=wide.dtype, device=rows.device)
    # on CUDA, index_add has no order; index_put sorts
    total = zeros.index_put([at], wide, True) if rows.is_cuda else zeros.index_add(0, at, wide)
    return total.view(batch, num_tokens + 1, heads, width)[:, :num_tokens].to(rows.dtype)
