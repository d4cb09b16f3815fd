"""Near and far in O(N) memory on a CPU, in eager mode: the mathematics of :mod:`castvision.ops.near_far` by chunks.

Each chunk (:mod:`castvision.ops.chunks`) is attended to in one fused call. Backward builds each chunk again; what is
kept is the operands, the output and its log-sum-exp.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from castvision.ops import near_far as plain
from castvision.ops.chunks import Chunk, Chunks, Remainders, Totals, rows_at
from castvision.ops.options import Operands


def near_far(
    x: Operands, windows: list[Tensor], labels: Tensor | None, num_clusters: int, center: Tensor | None
) -> Tensor:
    """Attention of N patch tokens; arguments and result as :func:`castvision.ops.near_far.near_far`, no dropout."""
    *tensors, scale = x  # no tuple: autograd looks for tensors among the arguments only
    return _NearFar.apply(*tensors, center, labels, windows, num_clusters, scale)  # type: ignore[no-any-return]


class _NearFar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, center, labels, windows, num_clusters, scale = arguments
        out, lse = _forward(Chunks(Operands._make([*tensors, scale]), windows, labels, num_clusters, center))
        ctx.save_for_backward(*tensors, center, labels, out, lse, *windows)
        ctx.constants = num_clusters, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved = ctx.saved_tensors  # read once: checkpointing unpacks them a single time
        *tensors, center, labels, out, lse = saved[:10]
        num_clusters, scale = ctx.constants
        windows = list(saved[10:])
        if torch.is_grad_enabled():  # these gradients are to be differentiated again
            d_operands = _gradients([*tensors, center], scale, windows, labels, num_clusters, grads[0])
            return *d_operands, None, None, None, None
        x = Operands._make([*tensors, scale])
        *d_operands, d_center = _backward(Chunks(x, windows, labels, num_clusters, center), grads[0], out, lse)
        return *d_operands, None, d_center, None, None, None, None


def _gradients(
    operands: list[Any], scale: float, windows: list[Tensor], labels: Tensor | None, num_clusters: int, grad: Tensor
) -> list[Tensor | None]:
    """Gradients of the operands and the mean query that can be differentiated, by operations that torch knows."""
    wanted = [i for i, each in enumerate(operands) if each is not None and each.requires_grad]
    for i in wanted:  # aliases: one operand may have been made from another, whose gradient is its own
        operands[i] = operands[i].view_as(operands[i])
    *tensors, center = operands
    out = plain.near_far(Operands._make([*tensors, scale]), windows, labels, num_clusters, center, 0.0)
    inputs = [operands[i] for i in wanted]
    found = torch.autograd.grad(out, inputs, grad, create_graph=True, allow_unused=True)
    by_place = dict(zip(wanted, found, strict=True))
    return [by_place.get(i) for i in range(len(operands))]


def _forward(call: Chunks) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, D), and its log-sum-exp (B, N, H)."""
    out = call.room()
    lse = call.room(call.heads, dtype=call.wide)
    for chunk in call.chunks():
        q, keys, values, mask = _heads_first(*call.operands(chunk))
        part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, keys, values, 0.0, False, attn_mask=mask, scale=call.scale
        )
        call.put(out, chunk, part.transpose(1, 2))
        call.put(lse, chunk, part_lse.transpose(1, 2))
    out = out[:, : call.num_tokens]
    if call.token_mask is not None:
        out = out.masked_fill(~call.token_mask[..., None, None], 0)
    return out, lse[:, : call.num_tokens]


def _backward(call: Chunks, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of q, k, v, prefix keys, prefix values and the mean query."""
    if call.token_mask is not None:
        grad = grad.masked_fill(~call.token_mask[..., None, None], 0)
    dq, dk, dv = call.room(), call.room(), call.room()
    d_prefix = None if call.prefix is None else torch.zeros_like(call.prefix, dtype=call.wide)
    far = None if call.totals is None else _FarGradient(call, call.totals)
    p = call.num_prefix

    def take(chunk: Chunk) -> None:  # a function, so that all it holds is gone before `finish`
        stop = p + chunk.index.shape[1]
        operands = call.operands(chunk)
        dq_part, dk_part, dv_part, d_bias = _attention_gradient(call, chunk, operands, grad, out, lse)
        if d_prefix is not None:
            for total, part in zip(d_prefix, (dk_part, dv_part), strict=True):
                total[chunk.images] += chunk.by_image(part[:, :p]).sum(1)
        near = [dk_part[:, p:stop], dv_part[:, p:stop]]
        if far is not None:
            inside = far.take(chunk, operands[1], dk_part[:, stop:], dv_part[:, stop:], d_bias)
            near = [part - less for part, less in zip(near, inside, strict=True)]
        for rows, part in zip((dq, dk, dv), (dq_part, *near), strict=True):
            call.put(rows, chunk, part)

    for chunk in call.chunks():
        take(chunk)
    dq, dk, dv = (x[:, : call.num_tokens] for x in (dq, dk, dv))
    d_center = None if far is None else far.finish(dk, dv)
    return dq, dk, dv, *((None, None) if d_prefix is None else d_prefix.to(call.q.dtype)), d_center


def _attention_gradient(
    call: Chunks, chunk: Chunk, operands: tuple[Tensor, Tensor, Tensor], grad: Tensor, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of a chunk's q, keys, values, tokens before heads, and of the summaries' bias if it has one."""
    part = call.gather(grad, chunk)
    if call.has_padding:
        part.masked_fill_((chunk.index == call.num_tokens)[..., None, None], 0)
    q, keys, values, mask = _heads_first(*operands)
    out, lse = call.gather(out, chunk).transpose(1, 2), call.gather(lse, chunk).transpose(1, 2)
    if call.has_padding:  # nobody looks at such a row: as if it weighed nothing
        lse = lse.masked_fill((chunk.index == call.num_tokens)[:, None], torch.inf)
    part = part.transpose(1, 2)
    grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        part, q, keys, values, out, lse, 0.0, False, attn_mask=mask, scale=call.scale
    )
    dq, dk, dv = (x.transpose(1, 2) for x in grads)
    if call.e is None:
        return dq, dk, dv, None
    # sum over queries of P (dP - delta): the fused kernel gives P'dP as dv.v, and P'delta takes one more product
    first = call.num_prefix + chunk.index.shape[1]
    delta = (part.to(call.wide) * out.to(call.wide)).sum(-1, keepdim=True)  # G, H, K, 1
    # in the precision of the kernel, whose log-sum-exp this is compared with; never above 1, though the two may differ
    logits = q.to(call.wide) * call.scale @ keys[:, :, first:].transpose(-1, -2).to(call.wide)
    weight = torch.exp((logits + mask[..., first:] - lse[..., None]).clamp(max=0.0))  # G, H, K, M
    d_bias = (dv[:, first:] * values.transpose(1, 2)[:, first:]).sum(-1).to(call.wide)
    return dq, dk, dv, d_bias - (weight * delta).sum(2).transpose(1, 2)


class _FarGradient:
    """What flows back through summaries: by chunk into sums over all windows, at the end to every member."""

    def __init__(self, call: Chunks, totals: Totals) -> None:
        self.call, self.totals = call, totals
        self.sums = torch.zeros_like(totals.sums)  # 2, B, M + 1, H, D
        self.z = torch.zeros_like(totals.z, dtype=call.wide)  # B, M + 1, h
        self.d_e = None if call.e is None else torch.zeros_like(call.e)
        self.d_center = None if call.center is None else torch.zeros_like(call.center)

    def take(self, chunk: Chunk, pairs: Tensor, dk: Tensor, dv: Tensor, d_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add up gradients of summaries, (G, M, H, D), and of their biases, (G, M, H); pairs: the chunk's operands.

        Returns:
            What the keys and values inside do *not* get of what every member gets at the end, (G, K, H, D) each.
        """
        call, images, rest = self.call, chunk.images, chunk.remainders
        groups, m = len(chunk.index), call.num_clusters
        whole = self.totals.z[images, None].expand(-1, groups // (images.stop - images.start), -1, -1).flatten(0, 2)
        whole = whole.to(call.wide).clamp(min=1e-30)  # G * (M + 1), h
        left = rest.left.clamp(min=1e-30)
        divisor = left
        if call.has_sparse:
            divisor = torch.where(rest.sparse, whole.index_select(0, rest.row), left)
        inverse = whole.index_copy(0, rest.row, divisor).reciprocal_().view(groups, m + 1, -1)[:, :m]
        grads = [dk.to(call.wide), dv.to(call.wide)]
        d_e: Tensor | None = None
        if d_bias is not None and call.center is not None and self.d_center is not None:
            means = pairs[:, :, -m - 1 : -1].to(call.wide)  # 2, G, M, H, D
            self.d_center[images] -= call.scale * chunk.by_image((d_bias[..., None] * means[0]).sum(1)).sum(1)
            center = call.center[images].repeat_interleave(groups // (images.stop - images.start), 0)[:, None]
            grads[0] = grads[0] - call.scale * d_bias[..., None] * center
            # Z divides the means, and its log is in the bias: of what is left, always, also where the mean is the
            # whole's
            through_mean = -sum((d * mean).sum(-1) for d, mean in zip(grads, means, strict=True)) * inverse
            log_left = whole.index_copy(0, rest.row, left).view(groups, m + 1, -1)[:, :m]
            through_bias = torch.where(log_left > 1e-30, d_bias / log_left, 0)
            self.z[images, :m] += chunk.by_image(through_mean + through_bias).sum(1)
            d_e = _rows_of(through_mean, rest).masked_fill(rest.sparse, 0) + _rows_of(through_bias, rest)
            d_e = _by_token(d_e, chunk)
        inside = []
        for i, grad in enumerate(grads):
            grad = grad * inverse[..., None]
            self.sums[i, images, :m] += chunk.by_image(grad).sum(1)
            part = _by_token(_rows_of(grad, rest).masked_fill_(rest.sparse[..., None], 0), chunk)
            if d_e is not None and call.e is not None:
                d_e = d_e + (part * call.gather(call.pair[i], chunk)).sum(-1)
                part = part * call.gather(call.e, chunk)[..., None]
            inside.append(part.to(call.q.dtype))
        if d_e is not None and self.d_e is not None:
            spare = call.room(call.heads, dtype=call.wide)[: images.stop]
            call.put(spare.zero_(), chunk, d_e)
            self.d_e[images] -= spare[images, : call.num_tokens]
        return inside[0], inside[1]

    def finish(self, dk: Tensor, dv: Tensor) -> Tensor | None:
        """Add every member's share to dk and dv (B, N, H, D); the gradient of the mean query (B, H, D)."""
        call = self.call
        if call.labels is None:
            return None
        for some in call.blocks():
            labels = call.labels[:, some]
            share_k, share_v = (rows_at(total, labels) for total in self.sums)  # B, tokens, H, D
            if call.e is not None and call.center is not None and self.d_e is not None and self.d_center is not None:
                e = call.e[:, some]
                keys, values = (x[:, some].to(call.wide) for x in call.pair)
                d_e = self.d_e[:, some] + rows_at(self.z, labels)
                d_e += (share_k * keys).sum(-1) + (share_v * values).sum(-1)
                d_exponent = d_e * e * call.scale
                self.d_center += (d_exponent[..., None] * keys).sum(1)
                share_k = share_k * e[..., None] + d_exponent[..., None] * call.center[:, None]
                share_v = share_v * e[..., None]
            dk[:, some] += share_k.to(dk.dtype)
            dv[:, some] += share_v.to(dv.dtype)
        return self.d_center


def _rows_of(x: Tensor, rest: Remainders) -> Tensor:
    """Rows of x (G, M, …) that are remainders', (U, …); zeros for cluster M."""
    m = x.shape[1]
    window = torch.div(rest.row, m + 1, rounding_mode="floor")
    cluster = rest.row - window * (m + 1)
    picked = x.flatten(0, 1).index_select(0, window * m + cluster.clamp(max=m - 1))
    return picked.masked_fill_((cluster == m).view(-1, *[1] * (picked.ndim - 1)), 0)


def _by_token(x: Tensor, chunk: Chunk) -> Tensor:
    """Remainders' rows (U, …) for each token that is a part of one, (G, K, …)."""
    return x.index_select(0, chunk.remainder).view(*chunk.index.shape, *x.shape[1:])


def _heads_first(q: Tensor, pairs: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, keys, values with heads before tokens, and the bias as a mask for all queries: the fused kernel's form."""
    q = q.transpose(1, 2)
    keys, values = pairs[:, :, :-1].transpose(2, 3)
    mask = bias[:, :-1].transpose(1, 2)[:, :, None].expand(-1, -1, q.shape[2], -1)
    return q, keys, values, mask
