"""Near and far: attention to the tokens of one's window one by one, and to all others through content clusters.

A query q of token n, in window w(n), sees P prefix keys, the keys of its window, and for every cluster c one key and
value that stand for the cluster's members *outside* the window. They are expanded around the mean query m of the
image and head:

    e_i = exp(scale m.k_i - top_c)     Z = sum e_i     k~ = sum e_i k_i / Z     v~ = sum e_i v_i / Z
    logit of the cluster = scale (q - m).k~ + log Z + top_c

over the members i outside the window, top_c the largest exponent in the cluster. For q = m this is full attention
exactly. ``summaries="mean"`` is m = 0: plain means, and log of their number. One softmax runs over all keys. The sums
outside a window are those of the whole cluster less those inside; where less than a thousandth of Z is left, k~ and
v~ are the whole cluster's, since what would be left of a difference in fp32 is rounding. No parameter belongs to any
of this.

*Anchors* are R tokens whose rows a_s are computed exactly. What near and far got wrong there, d_s = a_s - o_s, is a
smooth function of the query, known at R of them; it is fitted, per head, by boosting a kernel smoother (Tukey's
twicing, many times over) and added to every row:

    w_ns = softmax over s of -|q_n - q_s|^2 scale / 8     W = its rows of the anchors themselves
    c = d,  then again and again  c  +=  d - W c,  256 times     o_n  +=  sum_s w_ns c_s

Each round adds what the smoothed values still lack at the anchors. Kernel regression by solving a linear system is no
nearer, and needs more than products; rounds are done by doubling: c_2t = c_t + (I - W)^t c_t.

Operations here are those that FX, TorchScript, export, ONNX and compile know; :mod:`castvision.ops.streaming` does the
same faster and in less memory on a CPU.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from castvision.ops.arithmetic import is_eager, on_cpu, wide_dtype
from castvision.ops.options import Operands
from castvision.ops.partitions import cluster_grid, sample_positions
from castvision.ops.surrogates import farthest_first, routing_features

WORKSPACE = 1 << 24
"""Elements of keys and values that windows hold at once in eager mode, at least one window's."""


def is_sparse(left: Tensor, whole: Tensor) -> Tensor:
    """Whether what is left of a cluster's Z outside a window is too little for a difference of sums to resolve."""
    return left < 1e-3 * whole


def mean_query(q: Tensor, token_mask: Tensor | None) -> Tensor:
    """Mean over an image's real tokens, (B, H, D) in fp32 or float64, of queries (B, N, H, D)."""
    wide = q.to(wide_dtype(q.dtype))
    if token_mask is None:
        return wide.mean(1)
    real = token_mask[:, :, None, None].to(wide.dtype)
    return (wide * real).sum(1) / real.sum(1).clamp(min=1)


def exponents(k: Tensor, center: Tensor, labels: Tensor, num_clusters: int, scale: float) -> tuple[Tensor, Tensor]:
    """Weight e of each token in its cluster, (B, N, H), and the largest exponent of each cluster, (B, M + 1, H).

    k: (B, N, H, D); center: the mean query, (B, H, D). A cluster without a member has top 0.
    """
    wide = center.dtype
    logit = torch.einsum("bnhd,bhd->bnh", k.to(wide), center) * scale
    at = labels[:, :, None].expand(-1, -1, logit.shape[2])
    lowest = torch.full([k.shape[0], num_clusters + 1, k.shape[2]], -torch.inf, dtype=wide, device=k.device)
    top = lowest.scatter_reduce(1, at, logit.detach(), "amax")
    top = torch.where(top == -torch.inf, torch.zeros_like(top), top)
    return torch.exp(logit - top.gather(1, at)), top


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, …) at index (B, W, K) with values in 0…N-1: (B, W, K, …)."""
    image = torch.arange(x.shape[0], device=x.device)[:, None, None]
    return x[image, index]


def inverse_of(index: Tensor, num_tokens: int) -> Tensor:
    """Where each token stands in index (B, L), padding = N: (B, N) int64."""
    length = index.shape[1]
    place = torch.arange(length, device=index.device)[None].expand(index.shape[0], -1)
    start = torch.zeros([index.shape[0], num_tokens + 1], dtype=torch.long, device=index.device)
    return start.scatter(1, index, place)[:, :num_tokens]


class Members(NamedTuple):
    """What tokens add to the summary of their cluster, or sums of it.

    Attributes:
        light: 1 and e, (…, N or M, 1 + h), h = 1 for plain means, else H. In float64, since what is left of a
            difference of sums may be little; on devices without it in fp32.
        heavy: e k and e v, (…, N or M, 2, H, D) in fp32 or float64.
        top: Largest exponent of each cluster, (B, M, h).
    """

    light: Tensor
    heavy: Tensor
    top: Tensor


def near_far(
    x: Operands,
    windows: list[Tensor],
    labels: Tensor | None,
    num_clusters: int,
    center: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Attention of N patch tokens; in eager mode by parts of the windows, which the backward computes again.

    Args:
        x: Operands; masked tokens must hold finite numbers.
        windows: Indices (1 or B, W, K) of tokens, padding = N; together they list every token once.
        labels: Each token's cluster, (B, N), M for none; None: neighbours only, no summaries.
        num_clusters: M.
        center: The mean query, (B, H, D), or None for plain means.
        dropout_p: Dropout of the weights.

    Returns:
        (B, N, H, D) in v's dtype; rows of masked tokens are 0.
    """
    batch, num_tokens = x.q.shape[0], x.q.shape[1]
    members: Members | None = None
    totals: Members | None = None
    if labels is not None:
        members = make_members(x.k, x.v, labels, num_clusters, center, x.scale)
        totals = _sums(members, labels, num_clusters)
    rows: list[Tensor] = []
    slots: list[Tensor] = []
    for window in windows:
        index = window.expand(batch, -1, -1)
        slots.append(index.reshape(batch, -1))
        if not torch.jit.is_scripting():
            keys = index.shape[2] + (0 if labels is None else num_clusters)
            step = max(1, WORKSPACE // (2 * keys * x.k[:, 0].numel())) if is_eager() else 0
            if 0 < step < index.shape[1]:
                for part in torch.split(index, step, 1):
                    operands = (x, part, labels, num_clusters, members, totals, center, dropout_p)
                    again = torch.is_grad_enabled()
                    rows.append(
                        checkpoint(_attend_windows, *operands, use_reentrant=False, preserve_rng_state=dropout_p > 0)
                        if again
                        else _attend_windows(*operands)
                    )
                continue
        rows.append(_attend_windows(x, index, labels, num_clusters, members, totals, center, dropout_p))
    place = inverse_of(torch.cat(slots, 1), num_tokens)
    result = gather_tokens(torch.cat(rows, 1), place[:, None])[:, 0]
    token_mask = x.token_mask
    if token_mask is not None:
        result = result.masked_fill(~token_mask[:, :, None, None], 0.0)
    return result


def _attend_windows(
    x: Operands,
    index: Tensor,
    labels: Tensor | None,
    num_clusters: int,
    members: Members | None,
    totals: Members | None,
    center: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Rows of the tokens of windows (B, W, K), (B, W * K, H, D)."""
    batch, num_tokens = x.q.shape[0], x.q.shape[1]
    token_mask, prefix_k, prefix_v = x.token_mask, x.prefix_k, x.prefix_v
    ids = index.clamp(max=num_tokens - 1)
    seen = index < num_tokens
    if token_mask is not None:
        seen = seen & gather_tokens(token_mask, ids)
    keys, values = gather_tokens(x.k, ids), gather_tokens(x.v, ids)  # B, W, K, H, D
    bias = torch.where(seen, 0.0, -torch.inf)[..., None].to(wide_dtype(x.q.dtype))  # B, W, K, 1
    if labels is not None and members is not None and totals is not None:
        own = torch.where(seen, gather_tokens(labels, ids), num_clusters)
        inside = Members(gather_tokens(members.light, ids), gather_tokens(members.heavy, ids), members.top)
        far_k, far_v, far_bias = outside(_sums(inside, own, num_clusters), totals, center, x.scale)
        keys = torch.cat([keys, far_k.to(keys.dtype)], 2)
        values = torch.cat([values, far_v.to(values.dtype)], 2)
        bias = torch.cat([bias.expand(-1, -1, -1, far_bias.shape[3]), far_bias], 2)
    if prefix_k is not None and prefix_v is not None:
        over = [-1, keys.shape[1], -1, -1, -1]
        keys = torch.cat([prefix_k[:, None].expand(over), keys], 2)
        values = torch.cat([prefix_v[:, None].expand(over), values], 2)
        bias = F.pad(bias, (0, 0, prefix_k.shape[1], 0))
    queries = gather_tokens(x.q, ids).flatten(0, 1)
    out = attend_biased(queries, keys.flatten(0, 1), values.flatten(0, 1), bias.flatten(0, 1), x.scale, dropout_p)
    # a copy, since exporters exchange the fused call for one whose result lies otherwise in memory
    out = out.clone(memory_format=torch.contiguous_format)
    return out.view(batch, index.shape[1] * index.shape[2], out.shape[2], out.shape[3])


def attend_biased(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor, scale: float, dropout_p: float) -> Tensor:
    """Softmax attention under a bias per key in one fused call.

    Args:
        q: (G, K, H, D).
        keys: (G, S, H, D).
        values: (G, S, H, D).
        bias: Added to the logits, (G, S, 1 or H) in fp32 or float64; -inf hides a key. Where all are hidden, all are
            seen: nobody looks at such a row, and so it holds no NaN.
        scale: Factor of the products.
        dropout_p: Dropout of the weights.

    Returns:
        (G, K, H, D).
    """
    blind = (bias == -torch.inf).all(1, keepdim=True)
    bias = torch.where(blind, torch.zeros_like(bias), bias).transpose(1, 2)[:, :, None]  # G, 1 or H, 1, S
    q, keys, values = q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    if q.dtype != bias.dtype and not on_cpu(q):
        # fused kernels of accelerators take a mask in the operands' dtype, too coarse for log Z: two more channels
        # hold it
        hidden = bias == -torch.inf
        extra = (torch.where(hidden, torch.zeros_like(bias), bias) / scale)[:, :, 0, :, None]  # G, 1 or H, S, 1
        high = extra.to(q.dtype)
        low = (extra - high.to(extra.dtype)).to(q.dtype)
        channels = torch.cat([high, low], -1).expand(-1, keys.shape[1], -1, -1)
        q = F.pad(q, (0, 2), value=1.0)
        keys = torch.cat([keys, channels], -1)
        values = F.pad(values, (0, 2))
        mask = torch.where(hidden, -torch.inf, 0.0).to(q.dtype)
        out = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, dropout_p=dropout_p, scale=scale)
        return out[..., :-2].transpose(1, 2)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=bias, dropout_p=dropout_p, scale=scale).transpose(
        1, 2
    )


def make_members(
    k: Tensor, v: Tensor, labels: Tensor, num_clusters: int, center: Tensor | None, scale: float
) -> Members:
    """Of every token; arguments as :func:`near_far`."""
    wide = wide_dtype(k.dtype)
    heavy = torch.stack([k, v], 2).to(wide)  # B, N, 2, H, D
    one = torch.ones_like(heavy[:, :, 0, :1, 0])  # B, N, 1
    if center is None:
        top = torch.zeros([k.shape[0], num_clusters, 1], dtype=wide, device=k.device)
        return Members(_exact(torch.cat([one, one], 2)), heavy, top)
    e, top = exponents(k, center, labels, num_clusters, scale)
    return Members(_exact(torch.cat([one, e], 2)), heavy * e[:, :, None, :, None], top[:, :num_clusters])


def _exact(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


def _sums(members: Members, labels: Tensor, num_clusters: int) -> Members:
    """Sums over each cluster; labels (…, N) as the members'."""
    inside = labels[..., None] == torch.arange(num_clusters, device=labels.device)  # …, N, M
    inside = inside.transpose(-1, -2)
    light = inside.to(members.light.dtype) @ members.light
    heavy = inside.to(members.heavy.dtype) @ members.heavy.flatten(-3)
    return Members(light, heavy.reshape(list(heavy.shape[:-1]) + list(members.heavy.shape[-3:])), members.top)


def outside(inside: Members, totals: Members, center: Tensor | None, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Summaries of the clusters' members outside each window.

    Args:
        inside: Sums over the members inside, light (B, W, M, 1 + h), heavy (B, W, M, 2, H, D).
        totals: Sums over all members, light (B, M, 1 + h), heavy (B, M, 2, H, D).
        center: The mean query, (B, H, D), or None for plain means.
        scale: Factor of the logits.

    Returns:
        Keys and values (B, W, M, H, D), and the bias of their logits (B, W, M, h), -inf where nobody is left.
    """
    wide = totals.heavy.dtype
    left = totals.light[:, None] - inside.light
    z, whole = left[..., 1:], totals.light[:, None, :, 1:]
    sparse = is_sparse(z, whole)
    z_of_mean = torch.where(sparse, whole, z)
    z_of_mean = torch.where(z_of_mean > 0, z_of_mean, torch.ones_like(z_of_mean)).to(wide)
    total = totals.heavy[:, None]
    means = torch.where(sparse[..., None, :, None], total, total - inside.heavy) / z_of_mean[..., None, :, None]
    bias = z.clamp(min=1e-30).log().to(wide) + totals.top[:, None]
    if center is not None:
        bias = bias - scale * (means[..., 0, :, :] * center[:, None, None]).sum(-1)
    bias = torch.where(left[..., :1] > 0.5, bias, torch.full_like(bias, -torch.inf))
    return means[..., 0, :, :], means[..., 1, :, :], bias


def choose_anchors(q: Tensor, number: int, selection: str, rows: int, cols: int, token_mask: Tensor | None) -> Tensor:
    """Tokens whose rows are to be exact, (B, R) int64, without a gradient.

    Args:
        q: Queries, (B, N, H, D); the first rows * cols of them make up the grid.
        number: R. Where fewer tokens differ, some are chosen again; in eager mode no more than there are tokens.
        selection: "farthest": from the middle of the grid on, each the token whose query, mean over heads, is farthest
            from those of all chosen; "grid": a regular grid of positions of about R.
        rows: Of the grid.
        cols: Of the grid.
        token_mask: True where a token is real, (B, N); others are never chosen, unless none is real.
    """
    hidden = torch.zeros_like(q[:, :, 0, 0], dtype=torch.bool)
    if token_mask is not None:
        hidden = ~token_mask
    if not torch.jit.is_scripting():
        if is_eager():  # more would be the same ones again, at the cost of their cube
            number = min(number, q.shape[1])
    if selection == "grid":
        down, across = cluster_grid(rows, cols, number)
        return _closest_real(sample_positions(rows, cols, down, across, q), hidden)
    middle = torch.full([1], (rows // 2) * cols + cols // 2, device=q.device)
    newest = _closest_real(middle, hidden)[:, 0]  # B
    return farthest_first(routing_features(q), number, newest, hidden)


def _closest_real(wanted: Tensor, hidden: Tensor) -> Tensor:
    """For each wanted token (R,) the one nearest in order that is not hidden (B, N): (B, R)."""
    apart = (torch.arange(hidden.shape[1], device=hidden.device) - wanted[:, None]).abs()  # R, N
    return apart.expand(hidden.shape[0], -1, -1).masked_fill(hidden[:, None], hidden.shape[1]).argmin(2)


def share_differences(
    q: Tensor, out: Tensor, anchors: Tensor, exact: Tensor, scale: float, doublings: int = 8
) -> Tensor:
    """Rows with what the anchors' lack fitted over queries and added.

    Args:
        q: Queries, (B, N, H, D).
        out: Approximate rows, (B, N, H, D).
        anchors: Tokens whose rows are known, (B, R); one that stands there twice counts once.
        exact: Those rows, (B, R, H, D).
        scale: Factor of the attention's logits.
        doublings: The fit takes two to the power of this many rounds.

    Returns:
        (B, N, H, D) in out's dtype. The fit is computed in fp32 or float64: its values are larger than the differences
        and of both signs.
    """
    wide = wide_dtype(q.dtype)
    keys = gather_tokens(q, anchors[:, None])[:, 0].to(wide)  # B, R, H, D
    difference = exact.to(wide) - gather_tokens(out, anchors[:, None])[:, 0].to(wide)
    sharpness = 0.25 * scale
    # |q_n|^2 is the same for all anchors of a row
    bias = -0.5 * sharpness * keys.square().sum(-1)  # B, R, H
    again = (anchors[:, :, None] == anchors[:, None]).tril(-1).any(2)[..., None]  # B, R, 1
    bias = bias.masked_fill(again, -torch.inf)
    heads_first = keys.transpose(1, 2)  # B, H, R, D
    logits = heads_first @ heads_first.transpose(-1, -2) * sharpness + bias.transpose(1, 2)[:, :, None]
    lacking = torch.eye(logits.shape[-1], dtype=wide, device=q.device) - logits.softmax(-1)
    fitted = difference.transpose(1, 2)
    for doubling in range(doublings):
        if doubling > 0:
            lacking = lacking @ lacking
        fitted = fitted + lacking @ fitted
    fitted = fitted.transpose(1, 2).masked_fill(again[..., None], 0.0)
    return out + attend_biased(q.to(wide), keys, fitted, bias, sharpness, 0.0).to(out.dtype)
