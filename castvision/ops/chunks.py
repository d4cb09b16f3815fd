"""Near and far in parts on a CPU: windows by chunks, with the summaries of what lies outside each.

A chunk is all windows of several images, or several windows of one. Its keys and values are written into one buffer of
[P prefix ; K members ; M summaries] rows per window. Only clusters with members inside a window differ from the summary
that all windows share, so summaries are copied, and K rows a window at most are then replaced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.ops.arithmetic import wide_dtype
from castvision.ops.near_far import exponents, is_sparse
from castvision.ops.options import Operands

WORKSPACE = 1 << 20
"""Elements of a chunk's keys and values, at most: 4 MiB of fp32, so that a CPU's last cache holds them."""

SHARE = 4
"""They are at most this part of the queries: what a chunk takes stays small beside what goes in and out."""

LEAST_WORKSPACE = 1 << 18
"""But no less than this: smaller chunks cost more time in Python than they are worth."""

SMALL_IMAGES = 1 << 19
"""Elements of a chunk that holds whole images, at least."""

_TOKENS = 1 << 9
"""Tokens whose rows are copied at once on the way into sums."""


class Totals(NamedTuple):
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


class Windows(NamedTuple):
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


class Chunk(NamedTuple):
    """Windows of some images and their operands, tokens before heads; G = images x windows.

    Attributes:
        images: Which images.
        index: Tokens of each window, (G, K), padding = N.
        ids: The tokens' rows among those of the images, one after the other, (G * K,), padding as token N - 1.
        labels: Clusters of the tokens, (G, K), M where not seen.
        clusters: The clusters' rows among those of the images, M + 1 each, (G * K,).
        twin: Rows of each token's twin among the chunk's, (G * K,).
        left: See `Windows`, (G, K, h).
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


class Chunks:
    """One call of near and far, cut to chunks; arguments as :func:`castvision.ops.near_far.near_far`."""

    def __init__(
        self, x: Operands, windows: list[Tensor], labels: Tensor | None, num_clusters: int, center: Tensor | None
    ) -> None:
        q, k, v, prefix_k, prefix_v, token_mask, scale = x
        self.q, self.pair = q, (k, v)
        self.prefix = None if prefix_k is None or prefix_v is None else torch.stack([prefix_k, prefix_v])
        self.center, self.labels, self.token_mask, self.scale = center, labels, token_mask, scale
        self.batch, self.num_tokens, self.heads, self.head_dim = q.shape
        self.num_clusters = 0 if labels is None else num_clusters
        self.num_prefix = 0 if prefix_k is None else prefix_k.shape[1]
        self.wide = wide_dtype(q.dtype)
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

    # Rows of tokens, by chunk

    def chunks(self) -> Iterator[Chunk]:
        """The parts of the call, the same ones each time; the next one takes the memory of the last."""
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

    def _chunk(self, images: slice, some: slice, windows: Windows) -> Chunk:
        """Gather the tokens, then write the summaries of what lies outside each window."""
        number = images.stop - images.start
        numbers, left, sparse, divisor, bias = (x[images, some].flatten(0, 1) for x in windows)
        index, ids, labels, twin = numbers.unbind(1)
        groups, size = index.shape
        starts = self.count(groups)
        clusters, twin = labels, twin + starts * size
        if number > 1:
            image = _image_of(starts, number)
            ids, clusters = ids + image * self.num_tokens, labels + image * (self.num_clusters + 1)
        chunk = Chunk(
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
            part[:, p:stop] = self.gather(rows, chunk)
        if self.totals is not None:
            by_image[:, :, :, stop:] = self.totals.means[:, images, None]
            bias = self._replace(chunk, pairs, self.totals)
        return chunk._replace(bias=bias, q=self.gather(self.q, chunk), pairs=pairs)

    def _buffer(self, *shape: int) -> Tensor:
        """Memory for a chunk's keys and values: the next chunk of the shape takes it again."""
        if self._pairs is None or self._pairs.shape != shape:
            self._pairs = self.q.new_empty(shape)
        return self._pairs

    def count(self, number: int) -> Tensor:
        """0, 1, … as a column, (number, 1), made once."""
        if number not in self._counts:
            self._counts[number] = torch.arange(number, device=self.q.device)[:, None]
        return self._counts[number]

    def _replace(self, chunk: Chunk, pairs: Tensor, totals: Totals) -> Tensor:
        """Write means over the remainders of the clusters that have members inside a window; gives the bias."""
        groups, size = chunk.index.shape
        stop = self.num_prefix + size
        x = pairs[:, :, self.num_prefix : stop].to(self.wide)  # 2, G, K, H, D
        if self.e is not None:
            x = x * self.gather(self.e, chunk)[..., None]
        sums = totals.sums[:, chunk.images].flatten(1, 2)
        mean = sums.index_select(1, chunk.clusters).view_as(x) - _sum_inside(x, chunk.twin)
        mean /= chunk.divisor[..., None]
        if self.has_sparse:
            means = totals.means[:, chunk.images].flatten(1, 2)
            whole = means.index_select(1, chunk.clusters).view_as(x)
            mean = torch.where(chunk.sparse[..., None], whole, mean)
        row = (self.count(groups) * pairs.shape[2] + stop + chunk.labels).flatten()
        pairs.flatten(1, 2).index_copy_(1, row, mean.flatten(1, 2).to(pairs.dtype))
        if self.center is None:
            return chunk.bias
        rows = chunk.bias.flatten(0, 1).clone()
        term = self.scale * (mean[0] * self.centers(chunk)).sum(-1)  # G, K, H
        rows.index_copy_(0, row, rows.index_select(0, row) - term.flatten(0, 1))
        return rows.view_as(chunk.bias)

    def centers(self, chunk: Chunk) -> Tensor:
        """Mean query of each window's image, (G, 1, H, D)."""
        if self.center is None:
            raise ValueError("expected a mean query")
        number = chunk.images.stop - chunk.images.start
        return self.center[chunk.images].repeat_interleave(len(chunk.index) // number, 0)[:, None]

    def gather(self, rows: Tensor, chunk: Chunk) -> Tensor:
        """Rows (B, N, …) of the chunk's tokens, (G, K, …)."""
        part = rows[chunk.images]
        flat = part[0] if len(part) == 1 else part.flatten(0, 1)
        return flat.index_select(0, chunk.ids).view(*chunk.index.shape, *rows.shape[2:])

    def room(self, *tail: int, dtype: torch.dtype | None = None) -> Tensor:
        """Room for a row of every token, and a spare one for padding, (B, N + 1, …)."""
        tail = tail or (self.heads, self.head_dim)
        return self.q.new_empty(self.batch, self.num_tokens + 1, *tail, dtype=dtype or self.q.dtype)

    def put(self, rows: Tensor, chunk: Chunk, part: Tensor) -> None:
        """Write the chunk's rows (G, K, …) to their tokens."""
        number = chunk.images.stop - chunk.images.start
        at = chunk.index
        if number > 1:
            at = at + _image_of(self.count(len(at)), number) * (self.num_tokens + 1)
        rows[chunk.images].flatten(0, 1).index_put_((at,), part)

    # Sums over clusters and windows

    def _sum_clusters(self, labels: Tensor) -> Totals:
        clusters = self.num_clusters + 1
        sums = self.q.new_zeros(2, self.batch, clusters, self.heads, self.head_dim, dtype=self.wide)
        light = torch.ones_like(labels, dtype=torch.float64)[..., None]  # B, N, 1
        if self.e is not None:
            light = torch.cat([light, self.e.to(torch.float64)], 2)
        few = light.new_zeros(self.batch, clusters, light.shape[2])
        _add_rows(few, labels, light)
        for some in self.blocks():
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
        return Totals(count, z, sums, means, bias)

    def blocks(self) -> Iterator[slice]:
        """Some tokens of all images, whose rows are copied at once."""
        step = max(1, _TOKENS // self.batch)
        return (slice(start, start + step) for start in range(0, self.num_tokens, step))

    def _describe(self, index: Tensor) -> Windows:
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
            return Windows(torch.stack([index, ids, ids, ids], 2), hidden, hidden, hidden, _open_if_blind(bias))
        labels = torch.where(seen, self.labels.gather(1, flat).view_as(index), self.num_clusters)
        twin = _twins(labels, self.num_clusters)
        light = torch.ones_like(index, dtype=torch.float64)[..., None]
        if self.e is not None:
            e = self.e.gather(1, flat[..., None].expand(-1, -1, self.heads)).view(*index.shape, -1)
            light = torch.cat([light, e.to(torch.float64)], 3)
        rows = torch.arange(batch * number, device=index.device)[:, None] * size + twin.flatten(0, 1)
        inside = _sum_inside(light.flatten(0, 1)[None], rows.flatten())[0].view_as(light)
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
        self.has_sparse |= bool((sparse & (count > 0.5)).any())
        numbers = torch.stack([index, ids, labels, twin], 2)
        return Windows(numbers, left.to(self.wide), sparse, torch.where(sparse, 1, left).to(self.wide), full)


def _twins(labels: Tensor, num_clusters: int) -> Tensor:
    """For each token of windows (…, K) the place of one token of its window and cluster, whichever wrote last."""
    size = labels.shape[-1]
    flat = labels.reshape(-1, size)
    row = torch.arange(len(flat), device=labels.device)[:, None] * (num_clusters + 1) + flat
    table = torch.empty(len(flat) * (num_clusters + 1), dtype=torch.long, device=labels.device)
    table[row] = torch.arange(size, device=labels.device).expand_as(row)
    return table[row].view_as(labels)


def _sum_inside(x: Tensor, twin: Tensor) -> Tensor:
    """Sums over the tokens of a window and cluster, for each of them: (A, G, K, …) from the same.

    x: (A, G, K, …); twin: (G * K,) rows of the tokens' twins.
    """
    rows = x.flatten(1, 2)
    return torch.zeros_like(rows).index_add_(1, twin, rows).index_select(1, twin).view_as(x)


def _add_rows(total: Tensor, labels: Tensor, rows: Tensor) -> None:
    """Add rows (B, n, …) to those of total (B, M, …) that labels (B, n) name, in the same order every time."""
    total.flatten(0, 1).index_add_(0, _flat(labels, total.shape[1]), rows.flatten(0, 1))


def rows_at(x: Tensor, labels: Tensor) -> Tensor:
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


def by_image(x: Tensor, chunk: Chunk) -> Tensor:
    """(G, …) as (images, windows, …)."""
    return x.reshape(chunk.images.stop - chunk.images.start, -1, *x.shape[1:])


def _open_if_blind(bias: Tensor) -> Tensor:
    """Bias (…, S, h) where a window that would see nobody sees everybody: no NaN, and nobody looks at its rows."""
    blind = (bias[..., :-1, :] == -torch.inf).all(-2, keepdim=True)
    return bias.masked_fill(blind, 0)
