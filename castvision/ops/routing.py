"""Steps 1 and 2 of CAST (arXiv 2402.04239): which tokens make up which cluster, and the way back.

``index`` (B, M, K) lists the tokens of each cluster; slots without a token hold N. Assignments:

    sa_topk   a partition, every token in exactly one cluster of at most K (the default; :mod:`._matching`)
    topk      every cluster takes its K best tokens; a token may sit in none, one or several
    random    a fixed partition from a seed and N, the same for all images and steps (a control)
    window    windows of the token grid, ragged ones at the edge padded (a control)

Routing has no gradient. Surrogates and phi learn through the attention that follows.
"""

import math
from typing import NamedTuple, Optional

import torch
from timm.layers import register_notrace_function
from torch import Tensor

from castvision.ops import _triton
from castvision.ops._affinity import best_tokens, make_scorers
from castvision.ops._matching import match_heaps, match_rounds

ASSIGNMENTS = ("sa_topk", "topk", "random", "window")


class Routing(NamedTuple):
    """Tokens to clusters and back.

    Attributes:
        index: Tokens of each cluster, (B, M, K) int64; slots without a token hold N.
        inverse: For a partition: the flat slot m * K + k of each token, (B, N) int64; else None.
        offsets: For Top-K: where each token's slots begin in ``slots``, (B, N + 1) int64; else None.
        slots: For Top-K: flat slots sorted by token, (B, M * K) int64, padding slots last; else None.
    """

    index: Tensor  # type: ignore[assignment]
    inverse: Optional[Tensor]  # noqa: UP045 - TorchScript reads it
    offsets: Optional[Tensor]  # noqa: UP045 - TorchScript reads it
    slots: Optional[Tensor]  # noqa: UP045 - TorchScript reads it

    @property
    def is_partition(self) -> bool:
        """Whether every token sits in exactly one cluster."""
        return self.inverse is not None


def make_routing(index: Tensor, num_tokens: int, *, is_partition: bool) -> Routing:
    """Complete an index by the way back.

    Args:
        index: (B, M, K) int64 with values 0…N, padding = N.
        num_tokens: N.
        is_partition: Whether each token stands exactly once.

    Returns:
        The routing, with ``inverse`` for a partition and ``offsets``, ``slots`` otherwise.
    """
    flat = index.flatten(1)
    order = flat.argsort(dim=1, stable=True)  # B, M*K: slots sorted by token, padding (= N) last
    if is_partition:
        return Routing(index, order[:, :num_tokens], None, None)
    tokens = torch.arange(num_tokens + 1, device=index.device).expand(index.shape[0], -1).contiguous()
    offsets = torch.searchsorted(flat.gather(1, order), tokens)
    return Routing(index, None, offsets, order)


def coverage(routing: Routing, num_tokens: int) -> Tensor:
    """Share of tokens that sit in no, one and several clusters, (B, 3), rows summing to one."""
    index = routing.index.flatten(1)
    count = torch.zeros(index.shape[0], num_tokens + 1, device=index.device)
    count.scatter_add_(1, index, torch.ones_like(index, dtype=count.dtype))
    count = count[:, :num_tokens]
    return torch.stack([(count == 0), (count == 1), (count > 1)], 1).float().mean(2)


@register_notrace_function
def window_size(rows: int, cols: int, cluster_size: int) -> tuple[int, int]:
    """Window (rows, cols) of about ``cluster_size`` tokens: round(sqrt K) high, K // height wide, inside the grid."""
    height = min(rows, max(1, int(math.sqrt(float(cluster_size)) + 0.5)))
    return height, max(1, min(cols, cluster_size // height))


def learned_clusters(  # noqa: PLR0913 - the operator's own argument list
    q: Tensor,
    k: Tensor,
    surrogates: Tensor,
    phi: Tensor,
    token_mask: Tensor | None,
    cluster_size: int,
    assignment: str,
    activation: str,
    routing_score: str,
) -> Tensor:
    """Index (B, M, K) of ``topk`` or ``sa_topk``. Shapes as in :func:`castvision.ops.cast_attention`, no prefix."""
    num_tokens, num_clusters = q.shape[2], surrogates.shape[1]
    default = assignment == "sa_topk" and activation == "softmax" and routing_score == "affinity"
    if default and _triton.routes(q):
        return _triton.partition(q, k, surrogates, phi, token_mask, cluster_size)
    scorers = make_scorers(q, k, surrogates, phi, token_mask, activation, routing_score)
    if assignment == "topk":
        return torch.stack([best_tokens(scorer, num_tokens, cluster_size) for scorer in scorers])
    match = match_heaps if q.device.type == "cpu" else match_rounds
    return torch.stack([match(scorer, num_tokens, num_clusters, cluster_size) for scorer in scorers])


def random_clusters(num_tokens: int, num_clusters: int, cluster_size: int, seed: int) -> Tensor:
    """A partition drawn from ``seed`` and N, (M, K) int64, members ascending, sizes differing by at most one."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + num_tokens)
    order = torch.randperm(num_tokens, generator=generator)
    index = torch.full((num_clusters, cluster_size), num_tokens)
    place = torch.arange(num_tokens)
    index[place % num_clusters, place // num_clusters] = order
    return index.sort(1)[0]


def window_clusters(rows: int, cols: int, cluster_size: int) -> Tensor:
    """Windows of a token grid in reading order, (M, K) int64, K = window height * width; ragged ones padded with N."""
    height, width = window_size(rows, cols, cluster_size)
    grid = torch.arange(rows * cols).view(1, 1, rows, cols)
    down, across = -(-rows // height), -(-cols // width)
    padded = torch.nn.functional.pad(grid, (0, across * width - cols, 0, down * height - rows), value=rows * cols)
    index = padded.view(down, height, across, width).transpose(1, 2).reshape(down * across, height * width)
    return index.sort(1)[0]
