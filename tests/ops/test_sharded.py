"""One image over two processes: windows stay where they are, sums go around, and rows are those of one process.

docs/scale.md plans with what is simulated here; the package itself attends in one process.
"""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from castvision.ops import cast_attention, make_options
from castvision.ops.near_far import Members, _attend_windows, _sums, exponents, share_differences
from castvision.ops.options import AttentionOptions, Operands
from castvision.ops.partitions import cluster_grid, sample_positions, window_index
from castvision.ops.surrogates import cluster_sums, nearest, routing_features

PROCESSES, ROWS, COLS, PREFIX, HEADS, WIDTH, WINDOW = 2, 8, 6, 1, 2, 4, 2
SCALE = WIDTH**-0.5


class AllReduce(torch.autograd.Function):
    """The sum over the processes; what flows back is the sum of what flows back to each."""

    @staticmethod
    def forward(_, x: Tensor) -> Tensor:
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    backward = forward


def all_reduce(x: Tensor) -> Tensor:
    return AllReduce.apply(x)


def largest(x: Tensor) -> Tensor:
    """The maximum over the processes; without a gradient."""
    x = x.detach().clone()
    dist.all_reduce(x, dist.ReduceOp.MAX)
    return x


def collect(x: Tensor, wanted: Tensor, first: int) -> Tensor:
    """Rows (1, R, …) of tokens ``wanted`` (R,) of the image, each of which one process holds in x (1, N / n, …)."""
    here = (wanted >= first) & (wanted < first + x.shape[1])
    rows = x[:, (wanted - first).clamp(0, x.shape[1] - 1)]
    return all_reduce(torch.where(here.view(1, -1, *[1] * (x.ndim - 2)), rows, 0.0))


def clusters_of(k: Tensor, options: AttentionOptions, first: int) -> tuple[Tensor, int]:
    """Each token's cluster, by surrogates of the whole image: an all-reduce of M rows, and one a step of k-means."""
    down, across = cluster_grid(ROWS, COLS, options.num_clusters)
    features = routing_features(k)
    centers = collect(features, sample_positions(ROWS, COLS, down, across, k), first)
    usable = torch.ones(centers.shape[:2], dtype=torch.bool)
    for _ in range(options.refinements):
        sums = cluster_sums(features, nearest(features, centers, usable), down * across)
        count, total = (all_reduce(part) for part in sums)
        centers = torch.where(count > 0, total / count.clamp(min=1), centers)
    return nearest(features, centers, usable), down * across


def members_of(k: Tensor, v: Tensor, labels: Tensor, number: int, center: Tensor | None) -> Members:
    """What this process's tokens add to the sums, on the scale that all processes share."""
    one = torch.ones(*k.shape[:2], 1, dtype=k.dtype)
    heavy = torch.stack([k, v], 2)
    if center is None:
        return Members(torch.cat([one, one], 2), heavy, torch.zeros(1, number, 1, dtype=k.dtype))
    own, top = exponents(k, center, labels, number, SCALE)
    # a cluster without a member here has top 0, which may be above the others': it must not count
    seen = F.one_hot(labels, number + 1).any(1)[..., None]
    shared = largest(torch.where(seen, top, -torch.inf))
    at = labels[..., None].expand_as(own)
    e = own * torch.exp(top.gather(1, at) - shared.gather(1, at))
    return Members(torch.cat([one, e], 2), heavy * e[:, :, None, :, None], shared[:, :number])


def exact_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows of queries that all processes hold (1, R, H, D) over the keys of all: each process attends to its own."""
    logits = torch.einsum("brhd,bnhd->bhrn", q, k) * SCALE
    share = logits.logsumexp(3)
    own = torch.exp(share - largest(share))  # B, H, R
    rows = all_reduce(torch.einsum("bhrn,bnhd->brhd", logits.softmax(3), v) * own.transpose(1, 2)[..., None])
    return rows / all_reduce(own).transpose(1, 2)[..., None]


def attend(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions, rank: int) -> Tensor:
    """This process's rows, (1, P + N / n, H, D), of operands that hold the prefix and its own tokens."""
    (prefix_q, q), (prefix_k, k), (prefix_v, v) = (x.split([PREFIX, x.shape[1] - PREFIX], 1) for x in (q, k, v))
    first = rank * q.shape[1]
    labels, number = clusters_of(k, options, first)
    center = None
    if options.summaries == "query_weighted":
        center = all_reduce(q.sum(1)) / (ROWS * COLS)
    members = members_of(k, v, labels, number, center)
    own = _sums(members, labels, number)
    totals = Members(all_reduce(own.light), all_reduce(own.heavy), members.top)
    index = window_index(ROWS // PROCESSES, COLS, WINDOW, WINDOW, False, q)
    x = Operands(q, k, v, prefix_k, prefix_v, None, SCALE)
    rows = _attend_windows(x, index[None], labels, number, members, totals, center, 0.0)
    out = torch.zeros_like(q).index_copy(1, index.flatten(), rows)
    # prefix tokens and anchors see all; the prefix's own keys count once
    down, across = cluster_grid(ROWS, COLS, options.anchors)
    anchors = sample_positions(ROWS, COLS, down, across, q)
    asked = torch.cat([prefix_q, collect(q, anchors, first)], 1)
    keys, values = (torch.cat([a, b], 1) if rank == 0 else b for a, b in ((prefix_k, k), (prefix_v, v)))
    exact = exact_rows(asked, keys, values)
    with_anchors = [torch.cat([a, collect(a, anchors, first)], 1) for a in (q, out)]
    at = torch.arange(len(anchors))[None] + q.shape[1]
    out = share_differences(*with_anchors, at, exact[:, PREFIX:], SCALE)[:, : q.shape[1]]
    return torch.cat([exact[:, :PREFIX], out], 1)


def operands() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = 1, PREFIX + ROWS * COLS, HEADS, WIDTH
    *drawn, weight = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4))
    return [x.requires_grad_() for x in drawn], weight


def options_of(summaries: str) -> AttentionOptions:
    return make_options(
        summaries=summaries, window_size=WINDOW, num_clusters=6, refinements=2, anchors=4, anchor_selection="grid"
    )


def process(rank: int, folder: Path, summaries: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    whole, weight = operands()
    part = ROWS * COLS // PROCESSES
    own = torch.cat([torch.arange(PREFIX), PREFIX + rank * part + torch.arange(part)])
    out = attend(*(x[:, own] for x in whole), options_of(summaries), rank)
    counted = weight[:, own].clone()
    counted[:, :PREFIX] *= rank == 0  # all hold the prefix's rows
    grads = torch.autograd.grad((out * counted).sum(), whole)
    for grad in grads:
        dist.all_reduce(grad)
    torch.save([out.detach(), *grads], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are forked")
@pytest.mark.parametrize("summaries", ["mean", "query_weighted"])
def test_two_processes_attend_to_one_image(tmp_path: Path, summaries: str) -> None:
    forked = multiprocessing.get_context("fork")
    processes = [forked.Process(target=process, args=(rank, tmp_path, summaries)) for rank in range(PROCESSES)]
    for each in processes:
        each.start()
    whole, weight = operands()
    out, _ = cast_attention(*whole, options_of(summaries), [ROWS, COLS], PREFIX)
    expected = torch.autograd.grad((out * weight).sum(), whole)
    for each in processes:
        each.join(60)
        assert each.exitcode == 0
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    rows = torch.cat([found[0][0], *(parts[0][:, PREFIX:] for parts in found[1:])], 1)
    torch.testing.assert_close(rows, out.detach(), rtol=0, atol=1e-10)
    for parts in found:
        for got, wanted in zip(parts[1:], expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-10)
