"""Near and far by chunks of windows: the mathematics of :mod:`castvision.ops.near_far` in O(N) memory, in eager mode.

A chunk is all windows of several images, or several windows of one. Its keys and values are written into one buffer of
[P prefix ; K members ; M summaries] rows per window and attended to in one fused call. Only clusters with members
inside a window differ from the summary that all windows share, so summaries are copied, and K rows a window at most are
then replaced. Backward builds each chunk again; what is kept is the operands, the output and its log-sum-exp.

Sums run without atomics: by ``index_add_`` on a CPU, by products with one-hot matrices elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from castvision.ops import near_far as near_far_ops
from castvision.ops.near_far import attend_biased, exponents, is_sparse
from castvision.ops.softmax import wide_dtype

WORKSPACE = 1 << 20
"""Elements of a chunk's keys and values, at most: 4 MiB of fp32, so that a CPU's last cache holds them."""

SHARE = 4
"""They are at most this part of the queries: what a chunk takes stays small beside what goes in and out."""

LEAST_WORKSPACE = 1 << 17
"""But no less than this: smaller chunks cost more time in Python than they are worth."""

SMALL_IMAGES = 1 << 19
"""Elements of a chunk that holds whole images, at least."""

_TOKENS = 1 << 9
"""Tokens whose rows are copied at once on the way into sums."""


def near_far(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    windows: list[Tensor],
    labels: Tensor | None,
    num_clusters: int,
    prefix_k: Tensor | None,
    prefix_v: Tensor | None,
    token_mask: Tensor | None,
    center: Tensor | None,
    scale: float,
) -> Tensor:
    """Attention of N patch tokens; arguments and result as :func:`castvision.ops.near_far.near_far`, no dropout."""
    return _NearFar.apply(q, k, v, prefix_k, prefix_v, center, labels, windows, num_clusters, token_mask, scale)  # type: ignore[no-any-return]


class _NearFar(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        call = _Call(*arguments)
        out, lse = call.forward()
        *tensors, windows, num_clusters, token_mask, scale = arguments
        ctx.save_for_backward(*tensors, token_mask, out, lse, *windows)
        ctx.constants = num_clusters, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        saved = ctx.saved_tensors  # read once: checkpointing unpacks them a single time
        *tensors, token_mask, out, lse = saved[:10]
        num_clusters, scale = ctx.constants
        q, k, v, prefix_k, prefix_v, center, labels = tensors
        windows = list(saved[10:])
        call = _Call(q, k, v, prefix_k, prefix_v, center, labels, windows, num_clusters, token_mask, scale)
        return (*call.backward(grads[0], out, lse), *(None for _ in range(5)))


class _Totals(NamedTuple):
    """Sums over whole clusters; row M is of the tokens that sit in none, and nobody looks at it.

    Attributes:
        count: Members, (B, M + 1) in float64.
        z: Sum of e, (B, M + 1, h) in float64; h = 1 for plain means, else H.
        sums: Of e k and of e v, (2, B, M + 1, H, D).
        means: The sums over Z.
        bias: Of a whole cluster's logit, (B, M + 1, h); -inf for an empty one.
    """

    count: Tensor  # type: ignore[assignment] # shadows a method of tuples
    z: Tensor
    sums: Tensor
    means: Tensor
    bias: Tensor


class _Windows(NamedTuple):
    """Windows of one size, all that is light about them: (B, W, …) for all images, (G, …) cut to a chunk's G windows.

    Attributes:
        numbers: Four int64 numbers of each token, (…, 4, K): itself, padding = N; itself, padding = N - 1; its
            cluster, M where it is not seen; the place of one token of the same window and cluster, the same for all
            of them.
        left: Z of its cluster outside the window, (…, K, h).
        sparse: Whether that is too little to be resolved, (…, K, h).
        divisor: The same as ``left``, 1 where sparse.
        bias: Of the logits of [prefix ; members ; summaries ; the spare row], (…, P + K + M + 1, h).
    """

    numbers: Tensor
    left: Tensor
    sparse: Tensor
    divisor: Tensor
    bias: Tensor


class _Chunk(NamedTuple):
    """Windows of some images and their operands, tokens before heads; G = images x windows.

    Attributes:
        images: Which images.
        index: Tokens of each window, (G, K), padding = N.
        ids: The tokens' rows among those of the images, one after the other, (G * K,), padding as token N - 1.
        labels: Clusters of the tokens, (G, K), M where not seen.
        clusters: The clusters' rows among those of the images, M + 1 each, (G * K,).
        twin: Rows of each token's twin among the chunk's, (G * K,).
        left: See `_Windows`, (G, K, h).
        sparse: See there.
        divisor: See there.
        bias: Complete, (G, P + K + M + 1, h).
        q: (G, K, H, D).
        pairs: Keys and values, (2, G, P + K + M + 1, H, D), the last row spare.
    """

    images: slice
    index: Tensor  # type: ignore[assignment] # shadows a method of tuples
    ids: Tensor
    labels: Tensor
    clusters: Tensor
    twin: Tensor
    left: Tensor
    sparse: Tensor
    divisor: Tensor
    bias: Tensor
    q: Tensor
    pairs: Tensor


class _Call:
    """The operands of one call, (B, N, H, D), and its two passes."""

    def __init__(
        self, q: Tensor, k: Tensor, v: Tensor, prefix_k: Tensor | None, prefix_v: Tensor | None, center: Tensor | None,
        labels: Tensor | None, windows: list[Tensor], num_clusters: int, token_mask: Tensor | None, scale: float,
    ) -> None:  # fmt: skip
        self.q, self.pair = q, (k, v)
        self.prefix = None if prefix_k is None or prefix_v is None else torch.stack([prefix_k, prefix_v])
        self.center, self.labels, self.token_mask, self.scale = center, labels, token_mask, scale
        self.batch, self.num_tokens, self.heads, self.head_dim = q.shape
        self.num_clusters = 0 if labels is None else num_clusters
        self.num_prefix = 0 if prefix_k is None else prefix_k.shape[1]
        self.wide = wide_dtype(q.dtype)
        self.exact = torch.float32 if q.device.type == "mps" else torch.float64
        self.has_flash = near_far_ops.on_cpu(q)  # where torch hands out the log-sum-exp
        self.e: Tensor | None = None  # weight of every token, (B, N, H); None for plain means
        self.top: Tensor | None = None
        if center is not None and labels is not None:
            self.e, self.top = exponents(k, center, labels, num_clusters, scale)
        self.totals = None if labels is None else self._sum_clusters(labels)
        self._counts: dict[int, Tensor] = {}
        self._pairs: Tensor | None = None
        self.has_padding = token_mask is not None or sum(x.shape[1] * x.shape[2] for x in windows) > self.num_tokens
        self.has_sparse = False
        self.windows = [self._describe(index.expand(self.batch, -1, -1)) for index in windows]

    def forward(self) -> tuple[Tensor, Tensor]:
        """Output (B, N, H, D), and its log-sum-exp (B, N, H) where backward can use it, else nothing."""
        out = self._room()
        lse = self._room(self.heads, dtype=self.wide) if self.has_flash else out.new_empty(self.batch, 0)
        for chunk in self._chunks():
            if self.has_flash:
                q, keys, values, mask = _heads_first(chunk)
                part, part_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                    q, keys, values, 0.0, False, attn_mask=mask, scale=self.scale
                )
                part = part.transpose(1, 2)
                self._put(lse, chunk, part_lse.transpose(1, 2))
            else:
                keys, values = chunk.pairs[:, :, :-1]
                part = attend_biased(chunk.q, keys, values, chunk.bias[:, :-1], self.scale, 0.0)
            self._put(out, chunk, part)
        out = out[:, : self.num_tokens]
        if self.token_mask is not None:
            out = out.masked_fill(~self.token_mask[..., None, None], 0)
        return out, lse[:, : self.num_tokens]

    def backward(self, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k, v, prefix keys, prefix values and the mean query."""
        if self.token_mask is not None:
            grad = grad.masked_fill(~self.token_mask[..., None, None], 0)
        dq, dk, dv = self._room(), self._room(), self._room()
        d_prefix = None if self.prefix is None else torch.zeros_like(self.prefix, dtype=self.wide)
        far = None if self.totals is None else _FarGradient(self, self.totals)
        p = self.num_prefix
        for chunk in self._chunks():
            stop = p + chunk.index.shape[1]
            dq_part, dk_part, dv_part, d_bias = self._attention_gradient(chunk, grad, out, lse)
            if d_prefix is not None:
                for total, part in zip(d_prefix, (dk_part, dv_part), strict=True):
                    total[chunk.images] += _by_image(part[:, :p], chunk).sum(1)
            near = [dk_part[:, p:stop], dv_part[:, p:stop]]
            if far is not None:
                inside = far.take(chunk, dk_part[:, stop:], dv_part[:, stop:], d_bias)
                near = [part - less for part, less in zip(near, inside, strict=True)]
            for rows, part in zip((dq, dk, dv), (dq_part, *near), strict=True):
                self._put(rows, chunk, part)
        dq, dk, dv = (x[:, : self.num_tokens] for x in (dq, dk, dv))
        d_center = None if far is None else far.finish(dk, dv)
        return dq, dk, dv, *((None, None) if d_prefix is None else d_prefix.to(self.q.dtype)), d_center

    def _attention_gradient(
        self, chunk: _Chunk, grad: Tensor, out: Tensor, lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Gradients of a chunk's q, keys, values, tokens before heads, and of the summaries' bias if it has one."""
        part = self._gather(grad, chunk)
        if self.has_padding:
            part.masked_fill_((chunk.index == self.num_tokens)[..., None, None], 0)
        size = chunk.q.shape[1]
        if not self.has_flash:
            with torch.enable_grad():
                parts = (chunk.q, *chunk.pairs[:, :, :-1], chunk.bias[:, :-1])
                operands = [x.detach().requires_grad_() for x in parts]
                result = attend_biased(operands[0], operands[1], operands[2], operands[3], self.scale, 0.0)
            *grads, d_bias = torch.autograd.grad(result, operands, part)
            return grads[0], grads[1], grads[2], d_bias[:, self.num_prefix + size :]
        q, keys, values, mask = _heads_first(chunk)
        out, lse = self._gather(out, chunk).transpose(1, 2), self._gather(lse, chunk).transpose(1, 2)
        if self.has_padding:  # nobody looks at such a row: as if it weighed nothing
            lse = lse.masked_fill((chunk.index == self.num_tokens)[:, None], torch.inf)
        part = part.transpose(1, 2)
        grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            part, q, keys, values, out, lse, 0.0, False, attn_mask=mask, scale=self.scale
        )
        dq, dk, dv = (x.transpose(1, 2) for x in grads)
        if self.e is None:
            return dq, dk, dv, None
        # sum over queries of P (dP - delta): the fused kernel gives P'dP as dv.v, and P'delta takes one more product
        first = self.num_prefix + size
        delta = (part.to(self.wide) * out.to(self.wide)).sum(-1, keepdim=True)  # G, H, K, 1
        logits = (q * self.scale @ keys[:, :, first:].transpose(-1, -2)).to(self.wide)
        weight = torch.exp(logits + mask[..., first:] - lse[..., None])  # G, H, K, M
        d_bias = (dv[:, first:] * values.transpose(1, 2)[:, first:]).sum(-1).to(self.wide)
        return dq, dk, dv, d_bias - (weight * delta).sum(2).transpose(1, 2)

    # Rows of tokens, by chunk

    def _chunks(self) -> Iterator[_Chunk]:
        room = min(WORKSPACE, max(LEAST_WORKSPACE, self.q.numel() // SHARE))
        for windows in self.windows:
            number, size = windows.numbers.shape[1], windows.numbers.shape[3]
            row = 2 * (self.num_prefix + size + self.num_clusters + 1) * self.heads * self.head_dim
            if number * row <= room:  # many small images: fewer chunks of more of them
                room = max(room, SMALL_IMAGES)
            per = max(1, room // row)
            images, count = max(1, min(self.batch, per // number)), min(per, number)
            for b in range(0, self.batch, images):
                some = slice(b, min(b + images, self.batch))
                for w in range(0, number, count):
                    yield self._chunk(some, slice(w, w + count), windows)

    def _chunk(self, images: slice, some: slice, windows: _Windows) -> _Chunk:
        """Gather the tokens, then write the summaries of what lies outside each window."""
        number = images.stop - images.start
        numbers, left, sparse, divisor, bias = (x[images, some].flatten(0, 1) for x in windows)
        index, ids, labels, twin = numbers.unbind(1)
        groups, size = index.shape
        starts = self._count(groups)
        clusters, twin = labels, twin + starts * size
        if number > 1:
            image = _image_of(starts, number)
            ids, clusters = ids + image * self.num_tokens, labels + image * (self.num_clusters + 1)
        chunk = _Chunk(
            images,
            index,
            ids.flatten(),
            labels,
            clusters.flatten(),
            twin.flatten(),
            left,
            sparse,
            divisor,
            bias,
            self.q,
            self.q,
        )
        p, stop = self.num_prefix, self.num_prefix + size
        pairs = self._buffer(2, groups, bias.shape[1], self.heads, self.head_dim)
        by_image = pairs.view(2, number, -1, *pairs.shape[2:])
        if self.prefix is not None:
            by_image[:, :, :, :p] = self.prefix[:, images, None]
        for part, rows in zip(pairs, self.pair, strict=True):
            part[:, p:stop] = self._gather(rows, chunk)
        if self.totals is not None:
            by_image[:, :, :, stop:] = self.totals.means[:, images, None]
            bias = self._replace(chunk, pairs, self.totals)
        return chunk._replace(bias=bias, q=self._gather(self.q, chunk), pairs=pairs)

    def _buffer(self, *shape: int) -> Tensor:
        """Memory for a chunk's keys and values: the next chunk of the shape takes it again."""
        if self._pairs is None or self._pairs.shape != shape:
            self._pairs = self.q.new_empty(shape)
        return self._pairs

    def _count(self, number: int) -> Tensor:
        """0, 1, … as a column, (number, 1), made once."""
        if number not in self._counts:
            self._counts[number] = torch.arange(number, device=self.q.device)[:, None]
        return self._counts[number]

    def _replace(self, chunk: _Chunk, pairs: Tensor, totals: _Totals) -> Tensor:
        """Write means over the remainders of the clusters that have members inside a window; gives the bias."""
        groups, size = chunk.index.shape
        stop = self.num_prefix + size
        x = pairs[:, :, self.num_prefix : stop].to(self.wide)  # 2, G, K, H, D
        if self.e is not None:
            x = x * self._gather(self.e, chunk)[..., None]
        sums = totals.sums[:, chunk.images].flatten(1, 2)
        mean = sums.index_select(1, chunk.clusters).view_as(x) - _sum_inside(x, chunk.labels, chunk.twin)
        mean /= chunk.divisor[..., None]
        if self.has_sparse:
            means = totals.means[:, chunk.images].flatten(1, 2)
            whole = means.index_select(1, chunk.clusters).view_as(x)
            mean = torch.where(chunk.sparse[..., None], whole, mean)
        row = (self._count(groups) * pairs.shape[2] + stop + chunk.labels).flatten()
        pairs.flatten(1, 2).index_copy_(1, row, mean.flatten(1, 2).to(pairs.dtype))
        if self.center is None:
            return chunk.bias
        rows = chunk.bias.flatten(0, 1).clone()
        term = self.scale * (mean[0] * self._centers(chunk)).sum(-1)  # G, K, H
        rows.index_copy_(0, row, rows.index_select(0, row) - term.flatten(0, 1))
        return rows.view_as(chunk.bias)

    def _centers(self, chunk: _Chunk) -> Tensor:
        """Mean query of each window's image, (G, 1, H, D)."""
        if self.center is None:
            raise ValueError("expected a mean query")
        number = chunk.images.stop - chunk.images.start
        return self.center[chunk.images].repeat_interleave(len(chunk.index) // number, 0)[:, None]

    def _gather(self, rows: Tensor, chunk: _Chunk) -> Tensor:
        """Rows (B, N, …) of the chunk's tokens, (G, K, …)."""
        part = rows[chunk.images]
        flat = part[0] if len(part) == 1 else part.flatten(0, 1)
        return flat.index_select(0, chunk.ids).view(*chunk.index.shape, *rows.shape[2:])

    def _room(self, *tail: int, dtype: torch.dtype | None = None) -> Tensor:
        """Room for a row of every token, and a spare one for padding, (B, N + 1, …)."""
        tail = tail or (self.heads, self.head_dim)
        return self.q.new_empty(self.batch, self.num_tokens + 1, *tail, dtype=dtype or self.q.dtype)

    def _put(self, rows: Tensor, chunk: _Chunk, part: Tensor) -> None:
        """Write the chunk's rows (G, K, …) to their tokens."""
        number = chunk.images.stop - chunk.images.start
        at = chunk.index
        if number > 1:
            at = at + _image_of(self._count(len(at)), number) * (self.num_tokens + 1)
        rows[chunk.images].flatten(0, 1).index_put_((at,), part)

    # Sums over clusters and windows

    def _sum_clusters(self, labels: Tensor) -> _Totals:
        clusters = self.num_clusters + 1
        sums = self.q.new_zeros(2, self.batch, clusters, self.heads, self.head_dim, dtype=self.wide)
        light = torch.ones_like(labels, dtype=self.exact)[..., None]  # B, N, 1
        if self.e is not None:
            light = torch.cat([light, self.e.to(self.exact)], 2)
        few = light.new_zeros(self.batch, clusters, light.shape[2])
        _add_rows(few, labels, light)
        for some in self._blocks():
            for total, x in zip(sums, self.pair, strict=True):
                rows = x[:, some].to(self.wide).contiguous()
                _add_rows(total, labels[:, some], rows if self.e is None else rows * self.e[:, some, :, None])
        count = few[..., 0]
        z = few[..., :1] if self.e is None else few[..., 1:]
        means = sums / torch.where(count[..., None] > 0, z, 1).to(self.wide)[None, ..., None]
        bias = z.clamp(min=1e-30).log().to(self.wide)
        if self.center is not None and self.top is not None:
            bias = bias + self.top - self.scale * (means[0] * self.center[:, None]).sum(-1)
        bias = bias.masked_fill(count[..., None] == 0, -torch.inf)
        bias[:, self.num_clusters] = -torch.inf
        return _Totals(count, z, sums, means, bias)

    def _blocks(self) -> Iterator[slice]:
        """Some tokens of all images, whose rows are copied at once."""
        step = max(1, _TOKENS // self.batch)
        return (slice(start, start + step) for start in range(0, self.num_tokens, step))

    def _describe(self, index: Tensor) -> _Windows:
        """All that is light about windows with index (B, W, K)."""
        batch, number, size = index.shape
        ids = index.clamp(max=self.num_tokens - 1)
        flat = ids.flatten(1)
        seen = index < self.num_tokens
        if self.token_mask is not None:
            seen = seen & self.token_mask.gather(1, flat).view_as(index)
        hidden = torch.where(seen, 0.0, -torch.inf).to(self.wide)[..., None]  # B, W, K, 1
        if self.labels is None or self.totals is None:
            bias = F.pad(hidden, (0, 0, self.num_prefix, 1))
            return _Windows(torch.stack([index, ids, ids, ids], 2), hidden, hidden, hidden, _open_if_blind(bias))
        labels = torch.where(seen, self.labels.gather(1, flat).view_as(index), self.num_clusters)
        twin = _twins(labels, self.num_clusters)
        light = torch.ones_like(index, dtype=self.exact)[..., None]
        if self.e is not None:
            e = self.e.gather(1, flat[..., None].expand(-1, -1, self.heads)).view(*index.shape, -1)
            light = torch.cat([light, e.to(self.exact)], 3)
        rows = torch.arange(batch * number, device=index.device)[:, None] * size + twin.flatten(0, 1)
        inside = _sum_inside(light.flatten(0, 1)[None], labels.flatten(0, 1), rows.flatten())[0].view_as(light)
        cluster = labels.flatten(1)[..., None]
        count = self.totals.count[..., None].gather(1, cluster).view(*index.shape, 1) - inside[..., :1]
        whole = self.totals.z.gather(1, cluster.expand(-1, -1, self.totals.z.shape[2])).view(*index.shape, -1)
        left = whole - (inside if self.e is None else inside[..., 1:])
        # without the mean query's part where a remainder's mean is still to come
        bias = left.clamp(min=1e-30).log().to(self.wide)
        if self.top is not None:
            bias = bias + self.top.gather(1, cluster.expand(-1, -1, self.heads)).view(*index.shape, -1)
        bias = bias.masked_fill(count < 0.5, -torch.inf)
        full = self.totals.bias[:, None].expand(-1, number, -1, -1).clone()
        full.scatter_(2, labels[..., None].expand_as(bias), bias)
        full = torch.cat([hidden.expand(-1, -1, -1, full.shape[3]), full], 2)
        full = _open_if_blind(F.pad(full, (0, 0, self.num_prefix, 0)))
        sparse = is_sparse(left, whole)
        # nobody looks at a remainder without members, whatever its mean
        self.has_sparse |= not near_far_ops.on_cpu(sparse) or bool((sparse & (count > 0.5)).any())
        numbers = torch.stack([index, ids, labels, twin], 2)
        return _Windows(numbers, left.to(self.wide), sparse, torch.where(sparse, 1, left).to(self.wide), full)


class _FarGradient:
    """What flows back through summaries: by chunk into sums over all windows, at the end to every member."""

    def __init__(self, call: _Call, totals: _Totals) -> None:
        self.call, self.totals = call, totals
        self.sums = torch.zeros_like(totals.sums)  # 2, B, M + 1, H, D
        self.z = torch.zeros_like(totals.z, dtype=call.wide)  # B, M + 1, h
        self.d_e = None if call.e is None else torch.zeros_like(call.e)
        self.d_center = None if call.center is None else torch.zeros_like(call.center)

    def take(self, chunk: _Chunk, dk: Tensor, dv: Tensor, d_bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Add up gradients of summaries, (G, M + 1 or M, H, D), and of their biases, (G, M, H).

        Returns:
            What the keys and values inside do *not* get of what every member gets at the end, (G, K, H, D) each.
        """
        call, images = self.call, chunk.images
        groups, m = len(chunk.labels), call.num_clusters
        row = call._count(groups) * (m + 1) + chunk.labels  # G, K
        whole = self.totals.z[images, None].expand(-1, groups // (images.stop - images.start), -1, -1).flatten(0, 2)
        whole = whole.to(call.wide).clamp(min=1e-30)  # G * (M + 1), h
        left = chunk.left.flatten(0, 1).clamp(min=1e-30)
        divisor = left
        if call.has_sparse:
            divisor = torch.where(chunk.sparse.flatten(0, 1), whole[row.flatten()], left)
        inverse = whole.index_copy(0, row.flatten(), divisor).reciprocal_().view(groups, m + 1, -1)
        grads = [dk[:, :m].to(call.wide), dv[:, :m].to(call.wide)]
        d_e: Tensor | None = None
        if d_bias is not None and call.center is not None and self.d_center is not None:
            first = chunk.pairs.shape[2] - m - 1
            means = chunk.pairs[:, :, first:-1].to(call.wide)  # 2, G, M, H, D
            self.d_center[images] -= call.scale * _by_image((d_bias[..., None] * means[0]).sum(1), chunk).sum(1)
            grads[0] = grads[0] - call.scale * d_bias[..., None] * call._centers(chunk)
            # Z divides the means, and its log is in the bias: of what is left, always, also where the mean is the
            # whole's
            through_mean = -sum((d * mean).sum(-1) for d, mean in zip(grads, means, strict=True)) * inverse[:, :m]
            log_left = whole.index_copy(0, row.flatten(), left).view(groups, m + 1, -1)[:, :m]
            through_bias = torch.where(log_left > 1e-30, d_bias / log_left, 0)
            self.z[images, :m] += _by_image(through_mean + through_bias, chunk).sum(1)
            d_e = _rows_of(through_mean, row).masked_fill(chunk.sparse, 0) + _rows_of(through_bias, row)
        inside = []
        for i, grad in enumerate(grads):
            grad = grad * inverse[:, :m, :, None]
            self.sums[i, images, :m] += _by_image(grad, chunk).sum(1)
            part = _rows_of(grad, row).masked_fill_(chunk.sparse[..., None], 0)  # G, K, H, D
            if d_e is not None and call.e is not None:
                d_e = d_e + (part * call._gather(call.pair[i], chunk)).sum(-1)
                part = part * call._gather(call.e, chunk)[..., None]
            inside.append(part.to(call.q.dtype))
        if d_e is not None and self.d_e is not None:
            spare = call._room(call.heads, dtype=call.wide)[: images.stop]
            call._put(spare.zero_(), chunk, d_e)
            self.d_e[images] -= spare[images, : call.num_tokens]
        return inside[0], inside[1]

    def finish(self, dk: Tensor, dv: Tensor) -> Tensor | None:
        """Add every member's share to dk and dv (B, N, H, D); the gradient of the mean query (B, H, D)."""
        call = self.call
        if call.labels is None:
            return None
        for some in call._blocks():
            labels = call.labels[:, some]
            share_k, share_v = (_rows_at(total, labels) for total in self.sums)  # B, tokens, H, D
            if call.e is not None and call.center is not None and self.d_e is not None and self.d_center is not None:
                e = call.e[:, some]
                keys, values = (x[:, some].to(call.wide) for x in call.pair)
                d_e = self.d_e[:, some] + _rows_at(self.z, labels)
                d_e += (share_k * keys).sum(-1) + (share_v * values).sum(-1)
                d_exponent = d_e * e * call.scale
                self.d_center += (d_exponent[..., None] * keys).sum(1)
                share_k = share_k * e[..., None] + d_exponent[..., None] * call.center[:, None]
                share_v = share_v * e[..., None]
            dk[:, some] += share_k.to(dk.dtype)
            dv[:, some] += share_v.to(dv.dtype)
        return self.d_center


def _rows_of(x: Tensor, row: Tensor) -> Tensor:
    """Rows of x (G, M, …) for row (G, K) = g (M + 1) + cluster; zeros for cluster M."""
    m = x.shape[1]
    cluster = row - torch.arange(len(row), device=row.device)[:, None] * (m + 1)
    flat = torch.arange(len(row), device=row.device)[:, None] * m + cluster.clamp(max=m - 1)
    picked = x.flatten(0, 1).index_select(0, flat.flatten()).view(*row.shape, *x.shape[2:])
    return picked.masked_fill_((cluster == m).view(*row.shape, *[1] * (x.ndim - 2)), 0)


def _twins(labels: Tensor, num_clusters: int) -> Tensor:
    """For each token of windows (…, K) the place of one token of its window and cluster, whichever wrote last."""
    size = labels.shape[-1]
    flat = labels.reshape(-1, size)
    row = torch.arange(len(flat), device=labels.device)[:, None] * (num_clusters + 1) + flat
    table = torch.empty(len(flat) * (num_clusters + 1), dtype=torch.long, device=labels.device)
    table[row] = torch.arange(size, device=labels.device).expand_as(row)
    return table[row].view_as(labels)


def _sum_inside(x: Tensor, labels: Tensor, twin: Tensor) -> Tensor:
    """Sums over the tokens of a window and cluster, for each of them: (A, G, K, …) from the same.

    labels: (G, K); twin: (G * K,) rows of the tokens' twins.
    """
    if not near_far_ops.on_cpu(x):
        same = (labels[:, :, None] == labels[:, None]).to(x.dtype)  # G, K, K
        return (same @ x.flatten(3)).view_as(x)
    rows = x.flatten(1, 2)
    return torch.zeros_like(rows).index_add_(1, twin, rows).index_select(1, twin).view_as(x)


def _add_rows(total: Tensor, labels: Tensor, rows: Tensor) -> None:
    """Add rows (B, n, …) to those of total (B, M, …) that labels (B, n) name, in the same order every time."""
    if near_far_ops.on_cpu(total):
        total.flatten(0, 1).index_add_(0, _flat(labels, total.shape[1]), rows.flatten(0, 1))
        return
    member = labels[:, None] == torch.arange(total.shape[1], device=labels.device)[:, None]  # B, M, n
    total += (member.to(rows.dtype) @ rows.flatten(2)).view_as(total)


def _rows_at(x: Tensor, labels: Tensor) -> Tensor:
    """Rows of x (B, M, …) that labels (B, n) name, (B, n, …)."""
    return x.flatten(0, 1).index_select(0, _flat(labels, x.shape[1])).view(*labels.shape, *x.shape[2:])


def _flat(labels: Tensor, length: int) -> Tensor:
    """Numbers 0…length-1 of each image, (B, n), among those of all images one after the other, (B * n,)."""
    if len(labels) == 1:
        return labels[0]
    return (labels + torch.arange(len(labels), device=labels.device)[:, None] * length).flatten()


def _image_of(windows: Tensor, number: int) -> Tensor:
    """Which of ``number`` images each of the windows 0, 1, … (G, 1) belongs to."""
    return torch.div(windows, len(windows) // number, rounding_mode="floor")


def _by_image(x: Tensor, chunk: _Chunk) -> Tensor:
    """(G, …) as (images, windows, …)."""
    return x.reshape(chunk.images.stop - chunk.images.start, -1, *x.shape[1:])


def _open_if_blind(bias: Tensor) -> Tensor:
    """Bias (…, S, h) where a window that would see nobody sees everybody: no NaN, and nobody looks at its rows."""
    blind = (bias[..., :-1, :] == -torch.inf).all(-2, keepdim=True)
    return bias.masked_fill(blind, 0)


def _heads_first(chunk: _Chunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, keys, values with heads before tokens, and the bias as a mask for all queries: the fused kernel's form."""
    q = chunk.q.transpose(1, 2)
    keys, values = chunk.pairs[:, :, :-1].transpose(2, 3)
    mask = chunk.bias[:, :-1].transpose(1, 2)[:, :, None].expand(-1, -1, q.shape[2], -1)
    return q, keys, values, mask
