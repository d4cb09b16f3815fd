"""What one call of the fused back end works on, cut into chunks of clusters or tokens with a fixed workspace.

Rows are tokens with all their heads, (B, N, H, D): one gather moves a token's heads together, and what `qkv` makes is
laid out that way already, so that nothing is copied to get here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from castvision.ops._functions import MASKED

WORKSPACE = 1 << 20
"""Elements of the largest temporary of a chunk, at most: 4 MiB of fp32, so that a CPU's last cache holds it."""

SHARE = 4
"""A temporary is at most this part of the queries: what a chunk takes stays small beside what goes in and out."""

LEAST_WORKSPACE = 1 << 17
"""But no less than this (512 KiB of fp32): smaller chunks cost more time in Python than they are worth."""


@dataclass(frozen=True)
class Options:
    """The constants of a call; the names are those of :func:`castvision.ops.cast_attention`."""

    scale: float
    mixing: str
    activation: str
    laplace_norm: bool
    summaries: bool
    is_partition: bool
    dropout_p: float


@dataclass(frozen=True)
class Chunk:
    """Some clusters of some images: all clusters of several images, or several clusters of one.

    Attributes:
        images: Which images.
        clusters: Which clusters.
        ids: Their tokens, (b, c, K) int64 in 0…N-1; padding slots repeat token N-1.
        valid: False for padding slots and masked tokens, (b, c, K).
    """

    images: slice
    clusters: slice
    ids: Tensor
    valid: Tensor


class Problem:
    """Operands of one call. Shapes: q, k, v (B, H, N, D), surrogates (H, M, D), phi (B, N, 1), index (B, M, K)."""

    def __init__(  # noqa: PLR0913 - the operands of the operator
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        surrogates: Tensor,
        phi: Tensor,
        index: Tensor,
        prefix_k: Tensor | None,
        prefix_v: Tensor | None,
        q_route: Tensor | None,
        k_route: Tensor | None,
        token_mask: Tensor | None,
        options: Options,
    ) -> None:
        self.options = options
        dtype = arithmetic_dtype(q)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        q_route, k_route, prefix_k, prefix_v = (
            None if x is None else x.to(dtype) for x in (q_route, k_route, prefix_k, prefix_v)
        )
        self.q, self.k, self.v = (x.transpose(1, 2) for x in (q, k, v))  # B, N, H, D
        self.q_route = self.q if q_route is None else q_route.transpose(1, 2)
        self.k_route = self.k if k_route is None else k_route.transpose(1, 2)
        self.batch, self.num_tokens, self.heads, self.head_dim = self.q.shape
        self.num_clusters, self.cluster_size = index.shape[1:]
        self.num_slots = self.num_clusters * self.cluster_size
        self.dtype = q.dtype
        self.workspace = min(WORKSPACE, max(LEAST_WORKSPACE, q.numel() // SHARE))
        self.wide = torch.float64 if q.dtype == torch.float64 else torch.float32  # of softmax and sums
        self.surrogates = surrogates.to(q.dtype)
        plain = options.activation == "softmax" and not options.dropout_p
        # torch's fused attention hands out its log-sum-exp on a CPU; in half precision explicit products are faster
        self.is_flash = plain and q.device.type == "cpu" and q.dtype == self.wide
        self.joint = options.mixing == "joint"
        self.softmax = options.activation == "softmax"
        self.prefix_k, self.prefix_v = prefix_k, prefix_v  # B, H, P, D
        self.num_prefix = 0 if prefix_k is None else prefix_k.shape[2]
        self.phi = phi.to(self.wide)[..., 0]  # B, N
        self.token_mask = token_mask
        self.index = index

    @cached_property
    def ids(self) -> Tensor:
        """Tokens of the slots, padding as token N-1."""
        return self.index.clamp(max=self.num_tokens - 1)

    @cached_property
    def valid(self) -> Tensor:
        """Slots that hold a real token, (B, M, K)."""
        valid = self.index < self.num_tokens
        if self.token_mask is None:
            return valid
        return valid & self.token_mask.gather(1, self.ids.flatten(1)).view_as(self.index)

    @cached_property
    def counts(self) -> Tensor:
        """n_c, real tokens of each cluster, (B, M)."""
        return self.valid.sum(2).to(self.wide)

    @cached_property
    def log_counts(self) -> Tensor:
        """Log n_c, MASKED for a cluster without a real token, (B, M)."""
        return self.counts.log().clamp(min=MASKED)

    @cached_property
    def segments(self) -> Segments:
        """Slots grouped by token."""
        return Segments(self.index, self.num_tokens)

    @property
    def backward_factor(self) -> int:
        """Workspace of a chunk in backward over forward: gradients stand beside operands, so its chunks are smaller.

        But not smaller than the least workspace; and with dropout they are the forward's: each chunk draws a mask of
        its own, which must come out the same.
        """
        return 1 if self.options.dropout_p or self.workspace < 2 * LEAST_WORKSPACE else 2

    def gather_phi(self, chunk: Chunk) -> Tensor:
        """Phi of the chunk's slots, (b, c, K)."""
        return self.phi[chunk.images].gather(1, chunk.ids.flatten(1)).view_as(chunk.ids)

    def cluster_chunks(self, elements: int) -> Iterator[Chunk]:
        """Chunks of clusters, each cluster taking ``elements`` of the workspace."""
        per = max(1, self.workspace // max(1, elements))
        images = max(1, min(self.batch, per // self.num_clusters))
        clusters = min(per, self.num_clusters)
        for b in range(0, self.batch, images):
            for c in range(0, self.num_clusters, clusters):
                at = (slice(b, b + images), slice(c, c + clusters))
                yield Chunk(*at, self.ids[at], self.valid[at])

    def token_chunks(self, elements: int) -> Iterator[tuple[int, slice]]:
        """Chunks of one image's tokens, each token taking ``elements`` of the workspace."""
        step = max(1, self.workspace // max(1, elements))
        for b in range(self.batch):
            for start in range(0, self.num_tokens, step):
                yield b, slice(start, min(start + step, self.num_tokens))

    def gather(self, rows: Tensor, chunk: Chunk) -> Tensor:
        """Rows of the chunk's slots: (B, N, H, D) to (b, c, H, K, D)."""
        return gather_rows(rows, chunk).transpose(2, 3)

    def gather_grad(self, grad: Tensor, chunk: Chunk) -> Tensor:
        """Output gradients of the chunk's slots, (b, c, H, K, D); zero in padding, whose output went nowhere."""
        rows = self.gather(grad, chunk)
        if self.num_slots == self.num_tokens and self.token_mask is None:
            return rows
        return rows.masked_fill(~chunk.valid[:, :, None, :, None], 0)

    def slot_bias(self, chunk: Chunk) -> Tensor:
        """0 for real tokens, MASKED for padding, (b, c, K)."""
        return torch.where(chunk.valid, 0.0, MASKED).to(self.wide)

    def foreign(self, image: int, tokens: slice) -> Tensor:
        """True where a token is *not* a member of a cluster, (tokens, M), made from the index."""
        count = tokens.stop - tokens.start
        outside = torch.ones(self.num_clusters, count + 1, dtype=torch.bool, device=self.index.device)
        place = self.index[image] - tokens.start
        place = torch.where((place >= 0) & (place < count), place, count)
        return outside.scatter_(1, place, False)[:, :count].T

    def slots(self, chunk: Chunk) -> slice:
        """The chunk's flat slots, m * K + k, inside its images."""
        stop = min(chunk.clusters.stop, self.num_clusters)
        return slice(chunk.clusters.start * self.cluster_size, stop * self.cluster_size)

    def reduce(self, rows: Tensor, how: str) -> Tensor:
        """Slot rows (B, M*K, …) to token rows (B, N, …) by "sum" or "max"; nothing to reduce gives 0 or -inf."""
        if not self.options.is_partition:
            return self.segments.reduce(rows, how)
        inverse = self.segments.order[:, : self.num_tokens]
        return torch.stack([part.index_select(0, slot) for part, slot in zip(rows, inverse, strict=True)])

    def zero_masked(self, rows: Tensor) -> Tensor:
        """Rows (B, N, H, D) with masked tokens set to zero."""
        return rows if self.token_mask is None else rows.masked_fill(~self.token_mask[..., None, None], 0)


def arithmetic_dtype(x: Tensor) -> torch.dtype:
    """The dtype to compute in: that of x, but fp32 for half precision on a CPU that has no arithmetic for it.

    Without AVX-512, matrix products of torch in bfloat16 and float16 run 10 times slower than in fp32.
    """
    narrow = x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if narrow and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2") else x.dtype


def gather_rows(rows: Tensor, chunk: Chunk) -> Tensor:
    """Rows (B, N, …) of the chunk's slots, (b, c, K, …)."""
    part = rows[chunk.images]
    ids = chunk.ids
    if part.shape[0] > 1:
        offset = torch.arange(part.shape[0], device=ids.device) * part.shape[1]
        ids = ids + offset[:, None, None]
    flat = part[0] if part.shape[0] == 1 else part.flatten(0, 1)
    rows = flat.index_select(0, ids.flatten())
    return rows.view(*ids.shape, *rows.shape[1:])


class TokenSum:
    """Adds up rows given by slot into rows by token, without atomics on shared rows: the same bits every time.

    A partition writes each row to its place (padding goes to a spare row); otherwise the rows are kept by slot and
    summed in the order of a sorted index.
    """

    def __init__(self, problem: Problem, *tail: int, dtype: torch.dtype | None = None) -> None:
        self.problem = problem
        spare = int(problem.num_slots > problem.num_tokens)
        length = problem.num_tokens + spare if problem.options.is_partition else problem.num_slots
        self.rows = problem.q.new_empty(problem.batch, length, *tail, dtype=dtype or problem.dtype)

    def put(self, chunk: Chunk, rows: Tensor, *, accumulate: bool = False) -> None:
        """Take the chunk's rows, (b, c, K, …): the first ones of their slots, or more to ``accumulate``."""
        for i, b in enumerate(range(self.problem.batch)[chunk.images]):
            part = rows[i].to(self.rows.dtype)
            if not self.problem.options.is_partition:
                at = self.rows[b, self.problem.slots(chunk)].view(part.shape)
                at.add_(part) if accumulate else at.copy_(part)
            elif accumulate:
                self.rows[b].index_add_(0, self.problem.index[b, chunk.clusters].flatten(), part.flatten(0, 1))
            else:  # index_put_ takes transposed rows as they are
                self.rows[b].index_put_((self.problem.index[b, chunk.clusters],), part)

    def total(self) -> Tensor:
        """Sums by token, (B, N, …)."""
        if self.problem.options.is_partition:
            return self.rows[:, : self.problem.num_tokens]
        return self.problem.reduce(self.rows, "sum")


class Segments:
    """Slots grouped by token, for Top-K: reductions of slot rows (B, M*K, …) to token rows (B, N, …)."""

    def __init__(self, index: Tensor, num_tokens: int) -> None:
        flat, self.order = index.flatten(1).sort(dim=1, stable=True)
        tokens = torch.arange(num_tokens + 1, device=index.device).expand(index.shape[0], -1).contiguous()
        self.offsets = torch.searchsorted(flat, tokens)

    def reduce(self, rows: Tensor, how: str) -> Tensor:
        """Reduce by "sum" or "max"; a token without a slot gets 0 or -inf."""
        wide = torch.promote_types(rows.dtype, torch.float32)
        out = []
        for b, offsets in enumerate(self.offsets):
            kept = rows[b].index_select(0, self.order[b]).to(wide)
            out.append(torch.segment_reduce(kept, how, offsets=offsets, unsafe=True))
        return torch.stack(out).to(rows.dtype)


def dropout_mask(like: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """0 or 1 / (1 - p), drawn anew; the same sequence from the same generator state."""
    return torch.empty_like(like).bernoulli_(1 - p, generator=generator).div_(1 - p)
