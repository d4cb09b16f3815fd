"""Near and far in parts on a CPU: windows by chunks, with the summaries of what lies outside each.

A chunk is all windows of several images, or several windows of one. Its keys and values are written into one buffer of
[P prefix ; K members ; M summaries] rows per window. Only clusters with members inside a window differ from the summary
that all windows share: each such pair of window and cluster is a *remainder*. So summaries are copied, and a row for
each remainder, at most K a window, is then replaced.
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
"""Tokens whose rows are copied at once on the way into sums, at most; and at most an eighth of all."""


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


class Remainders(NamedTuple):
    """What is left of clusters outside windows that hold some of their members: U pairs, in the windows' order.

    Attributes:
        row: The pair among all of windows and M + 1 clusters, (U,) int64; cluster M is that of tokens not seen.
        cluster: Its cluster among those of the images, M + 1 each, (U,) int64.
        left: Z outside the window, (U, h).
        sparse: Whether that is too little to be resolved, (U, h).
        divisor: The same as ``left``, 1 where sparse.
    """

    row: Tensor
    cluster: Tensor
    left: Tensor
    sparse: Tensor
    divisor: Tensor


class Windows(NamedTuple):
    """Windows of one size, those of all images one after the other: all that is light about them.

    Attributes:
        number: W, of an image.
        index: Their tokens, (B * W, K), padding = N.
        bias: Of the logits of [prefix ; members ; summaries ; the spare row], (B * W, P + K + M + 1, h), without the
            mean query's part where a remainder's mean is still to come.
        remainder: Which remainder each token is a part of, (B * W, K).
        starts: How many remainders there are before each window, and in all.
        remainders: Of all windows.
    """

    number: int
    index: Tensor  # type: ignore[assignment] # shadows a method of tuples
    bias: Tensor
    remainder: Tensor
    starts: list[int]
    remainders: Remainders


class Chunk(NamedTuple):
    """Some windows of some images: G of them, counted from the chunk's first; see `Windows`.

    Attributes:
        images: Which images.
        index: (G, K).
        ids: The tokens' rows among those of the images, one after the other, (G * K,), padding as token N - 1.
        bias: (G, P + K + M + 1, h).
        remainder: (G * K,).
        remainders: Of these windows.
    """

    images: slice
    index: Tensor  # type: ignore[assignment] # shadows a method of tuples
    ids: Tensor
    bias: Tensor
    remainder: Tensor
    remainders: Remainders

    def by_image(self, x: Tensor) -> Tensor:
        """(G, …) as (images, windows, …)."""
        return x.reshape(self.images.stop - self.images.start, -1, *x.shape[1:])


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
        self._pairs: Tensor | None = None
        self.has_padding = token_mask is not None or sum(x.shape[1] * x.shape[2] for x in windows) > self.num_tokens
        self.has_sparse = False
        self.windows = [self._describe(index.expand(self.batch, -1, -1)) for index in windows]

    # Rows of tokens, by chunk

    def chunks(self) -> Iterator[Chunk]:
        """The parts of the call, the same ones each time."""
        room = min(WORKSPACE, max(LEAST_WORKSPACE, self.q.numel() // SHARE))
        for windows in self.windows:
            number, size = windows.number, windows.index.shape[1]
            row = 2 * (self.num_prefix + size + self.num_clusters + 1) * self.heads * self.head_dim
            if number * row <= room:  # many small images: fewer chunks of more of them
                room = max(room, SMALL_IMAGES)
            per = max(1, room // row)
            images = max(1, min(self.batch, per // number))
            for start in range(0, self.batch * number, images * number):
                stop = min(start + images * number, self.batch * number)
                step = stop - start if images > 1 else min(per, number)
                for first in range(start, stop, step):
                    yield self._chunk(windows, first, min(first + step, stop))

    def _chunk(self, windows: Windows, first: int, stop: int) -> Chunk:
        images = slice(first // windows.number, (stop - 1) // windows.number + 1)
        index = windows.index[first:stop]
        ids = index.clamp(max=self.num_tokens - 1) + self._offset(images, len(index), self.num_tokens)
        start = windows.starts[first]
        row, cluster, left, sparse, divisor = (x[start : windows.starts[stop]] for x in windows.remainders)
        clusters = self.num_clusters + 1
        remainders = Remainders(row - first * clusters, cluster - images.start * clusters, left, sparse, divisor)
        remainder = windows.remainder[first:stop].flatten() - start
        return Chunk(images, index, ids.flatten(), windows.bias[first:stop], remainder, remainders)

    def _offset(self, images: slice, windows: int, rows: int) -> Tensor | int:
        """Where the rows of each window's image begin among those of the images, (G, 1)."""
        number = images.stop - images.start
        if number == 1:
            return 0
        window = torch.arange(windows, device=self.q.device)[:, None]
        return torch.div(window, windows // number, rounding_mode="floor") * rows

    def operands(self, chunk: Chunk) -> tuple[Tensor, Tensor, Tensor]:
        """The tokens, and the summaries of what lies outside each window; tokens before heads.

        Returns:
            Queries (G, K, H, D), keys and values (2, G, P + K + M + 1, H, D), the last row spare, in memory that the
            next chunk takes again, and the bias of their logits, (G, P + K + M + 1, h).
        """
        groups, size = chunk.index.shape
        p, stop, bias = self.num_prefix, self.num_prefix + size, chunk.bias
        pairs = self._buffer(2, groups, stop + self.num_clusters + 1, self.heads, self.head_dim)
        by_image = pairs.view(2, chunk.images.stop - chunk.images.start, -1, *pairs.shape[2:])
        if self.prefix is not None:
            by_image[:, :, :, :p] = self.prefix[:, chunk.images, None]
        if self.totals is not None:
            by_image[:, :, :, stop:] = self.totals.means[:, chunk.images, None]
        row = chunk.remainders.row
        row = row + (torch.div(row, self.num_clusters + 1, rounding_mode="floor") + 1) * stop
        for i, (rows, x) in enumerate(zip(pairs, self.pair, strict=True)):
            members = self.gather(x, chunk)
            rows[:, p:stop] = members
            if self.totals is not None:
                mean = self._mean_left(i, members, chunk, self.totals)
                rows.flatten(0, 1).index_copy_(0, row, mean.to(rows.dtype))
                if i == 0 and self.center is not None:
                    term = (mean * self._centers(chunk)).sum(-1) * -self.scale  # U, H
                    bias = bias.flatten(0, 1).index_add(0, row, term).view_as(bias)
                del mean
            del members  # before the queries take its memory
        return self.gather(self.q, chunk), pairs, bias

    def _mean_left(self, part: int, members: Tensor, chunk: Chunk, totals: Totals) -> Tensor:
        """Mean key (0) or value (1) of each remainder, (U, H, D), from those of the windows' tokens (G, K, H, D)."""
        rest = chunk.remainders
        members = members.to(self.wide)
        if self.e is not None:
            members = members * self.gather(self.e, chunk)[..., None]
        inside = members.new_zeros(len(rest.row), self.heads, self.head_dim)
        inside.index_add_(0, chunk.remainder, members.flatten(0, 1))
        sums = totals.sums[part, chunk.images].flatten(0, 1)
        mean = sums.index_select(0, rest.cluster).sub_(inside).div_(rest.divisor[..., None])
        if self.has_sparse:
            whole = totals.means[part, chunk.images].flatten(0, 1).index_select(0, rest.cluster)
            mean = torch.where(rest.sparse[..., None], whole, mean)
        return mean

    def _buffer(self, *shape: int) -> Tensor:
        """Memory for a chunk's keys and values: the next chunk of the shape takes it again."""
        if self._pairs is None or self._pairs.shape != shape:
            self._pairs = self.q.new_empty(shape)
        return self._pairs

    def _centers(self, chunk: Chunk) -> Tensor:
        """Mean query of each remainder's image, (U, H, D), or (1, H, D) where there is one image."""
        if self.center is None:
            raise ValueError("expected a mean query")
        centers = self.center[chunk.images]
        if len(centers) == 1:
            return centers
        image = torch.div(chunk.remainders.cluster, self.num_clusters + 1, rounding_mode="floor")
        return centers.index_select(0, image)

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
        at = chunk.index + self._offset(chunk.images, len(chunk.index), self.num_tokens + 1)
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
        step = max(1, min(_TOKENS // self.batch, self.num_tokens // 8))
        return (slice(start, start + step) for start in range(0, self.num_tokens, step))

    def _describe(self, index: Tensor) -> Windows:
        """All that is light about windows with index (B, W, K)."""
        number = index.shape[1]
        ids = index.clamp(max=self.num_tokens - 1).flatten(1)
        seen = index < self.num_tokens
        if self.token_mask is not None:
            seen = seen & self.token_mask.gather(1, ids).view_as(index)
        hidden = torch.where(seen, 0.0, -torch.inf).to(self.wide).flatten(0, 1)[..., None]  # B * W, K, 1
        index = index.flatten(0, 1)
        if self.labels is None or self.totals is None:
            bias = _open_if_blind(F.pad(hidden, (0, 0, self.num_prefix, 1)))
            nothing = Remainders(*[index.new_empty(0)] * 5)
            return Windows(number, index, bias, index, [0] * (len(index) + 1), nothing)
        clusters = self.num_clusters + 1
        labels = torch.where(seen, self.labels.gather(1, ids).view_as(seen), self.num_clusters).flatten(0, 1)
        pair = torch.arange(len(index), device=index.device)[:, None] * clusters + labels  # B * W, K
        exists = torch.zeros(len(index) * clusters, dtype=torch.bool, device=index.device)
        exists[pair] = True
        remainder = (exists.cumsum(0) - 1)[pair]
        row = exists.nonzero()[:, 0]
        starts: list[int] = F.pad(exists.view(-1, clusters).sum(1).cumsum(0), (1, 0)).tolist()
        cluster = torch.div(row, number * clusters, rounding_mode="floor") * clusters + row % clusters
        light = torch.ones_like(ids, dtype=torch.float64)[..., None]
        if self.e is not None:
            e = self.e.gather(1, ids[..., None].expand(-1, -1, self.heads))
            light = torch.cat([light, e.to(torch.float64)], 2)
        inside = light.new_zeros(len(row), light.shape[2]).index_add_(0, remainder.flatten(), light.flatten(0, 1))
        whole = self.totals.z.flatten(0, 1).index_select(0, cluster)
        left = whole - (inside if self.e is None else inside[:, 1:])
        someone = (self.totals.count.flatten().index_select(0, cluster) - inside[:, 0] > 0.5)[:, None]
        bias = left.clamp(min=1e-30).log().to(self.wide)
        if self.top is not None:
            bias = bias + self.top.flatten(0, 1).index_select(0, cluster)
        shared = self.totals.bias[:, None].expand(-1, number, -1, -1).flatten(0, 2)
        full = shared.index_copy(0, row, bias.masked_fill(~someone, -torch.inf)).view(len(index), clusters, -1)
        full = torch.cat([hidden.expand(-1, -1, full.shape[2]), full], 1)
        full = _open_if_blind(F.pad(full, (0, 0, self.num_prefix, 0)))
        sparse = is_sparse(left, whole)
        self.has_sparse |= bool((sparse & someone).any())  # nobody looks at a remainder without members
        divisor = torch.where(sparse, 1, left).to(self.wide)
        return Windows(
            number, index, full, remainder, starts, Remainders(row, cluster, left.to(self.wide), sparse, divisor)
        )


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


def _open_if_blind(bias: Tensor) -> Tensor:
    """Bias (…, S, h) where a window that would see nobody sees everybody: no NaN, and nobody looks at its rows."""
    blind = (bias[..., :-1, :] == -torch.inf).all(-2, keepdim=True)
    return bias.masked_fill(blind, 0)
