"""Who belongs together: windows of the token grid, and clusters as a user or a layer hands them on.

Two forms. An *index* (…, M, K) lists the tokens of each window or cluster, places without a token holding N. *Labels*
(B, N) give each token's cluster, M for none; they can say clusters of any size. Positions never count prefix tokens.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.ops.arithmetic import is_exporting

BALANCED = ("sa_topk", "random", "blocks")
"""Assignments that give every token one cluster of at most K."""

ASSIGNMENTS = ("nearest", "sa_topk", "topk", "random", "blocks")


class Routing(NamedTuple):
    """Clusters of a batch, and what kind they are.

    Attributes:
        assignment: How they were made, one of ``ASSIGNMENTS``.
        num_clusters: M.
        labels: Each token's cluster, (B, N) int64, M for none; None for "topk", where a token may sit in several.
        index: Tokens of each cluster, (B, M, K) int64, padding = N; None for "nearest", whose sizes are free.
    """

    assignment: str
    num_clusters: int
    labels: Tensor | None
    index: Tensor | None  # type: ignore[assignment] # shadows tuple.index, which nobody calls here

    @property
    def is_partition(self) -> bool:
        """Whether no token sits in two clusters."""
        return self.labels is not None


def labels_of(index: Tensor, num_tokens: int) -> Tensor:
    """Labels (B, N) of a partition's index (B, M, K); tokens that stand nowhere get M."""
    batch, clusters, size = index.shape
    own = torch.arange(clusters, device=index.device)[None, :, None].expand(batch, clusters, size)
    labels = torch.full((batch, num_tokens + 1), clusters, dtype=torch.long, device=index.device)
    return labels.scatter(1, index.reshape(batch, clusters * size), own.reshape(batch, clusters * size))[:, :num_tokens]


def check_routing(routing: Routing, assignment: str, batch: int, num_tokens: int, num_clusters: int | None) -> None:
    """Raise unless a routing that a user gives is what is asked for: its kind, sizes and every number in it.

    Args:
        routing: To check; reads its tensors, which waits for a GPU.
        assignment: What the call or layer is made for.
        batch: B of the call.
        num_tokens: N of the call, without prefix tokens.
        num_clusters: M where parameters fix it, else None.

    Raises:
        ValueError: It does not fit; the message says in what.
        TypeError: Not integers, or without values (meta).
    """
    if routing.assignment != assignment:
        raise ValueError(
            f"expected a routing made by assignment={assignment!r}, got one made by {routing.assignment!r}; "
            "route anew, or create the layer with that assignment"
        )
    if num_clusters is not None and routing.num_clusters != num_clusters:
        raise ValueError(f"expected a routing of M={num_clusters} clusters, got one of {routing.num_clusters}")
    clusters, labels, index = routing.num_clusters, routing.labels, routing.index
    if (labels is None) != (assignment == "topk") or (index is None) != (assignment == "nearest"):
        raise ValueError(f"expected labels except for 'topk' and an index except for 'nearest', got {assignment!r}")
    if labels is not None:
        _check_integers("labels", labels, clusters)
        if labels.shape != (batch, num_tokens):
            raise ValueError(f"expected routing.labels (B={batch}, N={num_tokens}), got {tuple(labels.shape)}")
    if index is not None:
        _check_integers("index", index, num_tokens)
        if index.ndim != 3 or index.shape[:2] != (batch, clusters):
            raise ValueError(f"expected routing.index (B={batch}, M={clusters}, K), got {tuple(index.shape)}")
        flat = (index if labels is None else index.flatten(1)[:, None]).sort(-1)[0]
        if bool(((flat[..., 1:] == flat[..., :-1]) & (flat[..., 1:] < num_tokens)).any()):
            raise ValueError("expected a routing that lists a token once a cluster (a partition: once), got it twice")
        # a masked token stands in the index, which must list all, and has no label
        if labels is not None and bool(((labels_of(index, num_tokens) != labels) & (labels < clusters)).any()):
            raise ValueError("expected routing.labels and routing.index of the same clusters, got two that disagree")


def _check_integers(name: str, values: Tensor, most: int) -> None:
    if values.dtype != torch.long or values.is_meta:
        raise TypeError(f"expected routing.{name} as int64 values, got {values.dtype} on {values.device}")
    if values.numel() and not 0 <= int(values.min()) <= int(values.max()) <= most:
        raise ValueError(
            f"expected routing.{name} from 0 to {most}, got {int(values.min())} to {int(values.max())}; "
            "was it made for another number of tokens or clusters?"
        )


def coverage(routing: Routing, num_tokens: int) -> Tensor:
    """Share of the N tokens that sit in no, one and several clusters, (B, 3), rows summing to one."""
    if routing.labels is not None:
        inside = (routing.labels < routing.num_clusters).float().mean(1)
        return torch.stack([1 - inside, inside, torch.zeros_like(inside)], 1)
    index = routing.index.flatten(1)  # type: ignore[union-attr] # one of the two is there
    count = torch.zeros(index.shape[0], num_tokens + 1, device=index.device)
    count.scatter_add_(1, index, torch.ones_like(index, dtype=count.dtype))
    count = count[:, :num_tokens]
    return torch.stack([(count == 0), (count == 1), (count > 1)], 1).float().mean(2)


def random_index(num_tokens: int, num_clusters: int, cluster_size: int, seed: int, like: Tensor) -> Tensor:
    """A partition drawn from ``seed`` and N, (M, K) int64, sizes differing by at most one; padding = N."""
    # a hash that maps different numbers to different ones, as tensor operations: a generator stops compile and export
    x = torch.arange(num_tokens, device=like.device) * 2654435761 + seed * 40503 + 1
    for _ in range(2):
        x = (x & 0xFFFFFFFF) * 0x45D9F3B
        x = x ^ (x & 0xFFFFFFFF).bitwise_right_shift(16)
    order = (x & 0xFFFFFFFF).argsort()
    return (
        F.pad(order, (0, num_clusters * cluster_size - num_tokens), value=float(num_tokens))
        .view(cluster_size, num_clusters)
        .T
    )


def index_of(labels: Tensor, num_clusters: int, cluster_size: int) -> Tensor:
    """Index (M, K) of labels (N,) in 0…M-1, members ascending, padding = N; no cluster may hold more than K."""
    num_tokens = labels.shape[0]
    order = labels.argsort(stable=True)
    label = labels[order]
    member = label[:, None] == torch.arange(num_clusters, device=labels.device)
    start = member.sum(0).cumsum(0) - member.sum(0)
    rank = torch.arange(num_tokens, device=labels.device) - start[label]
    index = torch.full([num_clusters * cluster_size], num_tokens, dtype=torch.long, device=labels.device)
    return index.scatter(0, label * cluster_size + rank, order).view(num_clusters, cluster_size)


def free_size(size: int) -> int:
    """The same number; to an export a size of its own, instead of an expression that grows with all made of it."""
    if not torch.jit.is_scripting():
        if is_exporting():
            free: int = torch.scalar_tensor(size, dtype=torch.long).item()  # type: ignore[assignment]
            torch._check(free >= 1)
            return free
    return size


def window_size_for(rows: int, cols: int) -> int:
    """Side of a window by default: the even number from N ** (1/4) to 1.5 N ** (1/4) whose windows pad the grid least.

    The smaller of equals, at least 2: 4 for 8 x 8 tokens, 8 for 32 x 32 and 64 x 64, 16 for 128 x 128 and 256 x 256.
    """
    if not torch.jit.is_scripting():
        if is_exporting():
            return _exported_window_size(rows, cols)
    root: float = (rows * cols) ** 0.25
    best = 2 * math.ceil(root / 2 - 1e-6)
    for size in (best + 2, best + 4):
        if size <= 1.5 * root and _padded(rows, cols, size) < _padded(rows, cols, best):
            best = size
    return best


def _padded(rows: int, cols: int, size: int) -> int:
    """Tokens of the grid filled up to whole windows."""
    return ((rows + size - 1) // size) * ((cols + size - 1) // size) * size * size


def _exported_window_size(rows: int, cols: int) -> int:
    """The same by tensors: an export may not branch on sizes, and what comes out of a tensor is a size of its own."""
    down, across = (torch.scalar_tensor(n, dtype=torch.float64) for n in (rows, cols))
    root = (down * across) ** 0.25
    sizes = 2 * torch.ceil(root / 2 - 1e-6) + torch.arange(0, 6, 2)
    padded = torch.ceil(down / sizes) * torch.ceil(across / sizes) * sizes * sizes
    padded = torch.where((sizes > 1.5 * root) & (sizes > sizes[:1]), torch.inf, padded)
    size: int = sizes.gather(0, padded.argmin(0, keepdim=True)).long().item()  # type: ignore[assignment]
    torch._check(size >= 2)
    return size


def cluster_grid(rows: int, cols: int, num_clusters: int | None, factor: float = 2.0) -> tuple[int, int]:
    """Clusters down and across a grid: about M in all (default factor * sqrt(N)), spaced alike in both directions.

    At most one for a token; ``num_clusters = rows * cols`` gives exactly (rows, cols).
    """
    wanted = factor * (rows * cols) ** 0.5 if num_clusters is None else float(num_clusters)
    down = _between(1, _rounded((wanted * rows / cols) ** 0.5), rows)
    down = free_size(_between(1, down, _rounded(wanted)))  # a tall grid a token wide has not more down than in all
    return down, free_size(_between(1, _rounded(wanted / down), cols))


def _rounded(value: float) -> int:
    """The nearest whole number of one >= 0, half up."""
    if torch.jit.is_scripting():
        return math.floor(value + 0.5)
    return math.trunc(value + 0.5)  # the same; torch.export cannot save math.floor


def _between(low: int, value: int, high: int) -> int:
    if not torch.jit.is_scripting():
        if is_exporting():  # which may not branch on sizes
            return torch.sym_max(low, torch.sym_min(value, high))  # type: ignore[return-value]
    return max(low, min(value, high))


def window_index(rows: int, cols: int, height: int, width: int, shift: bool, like: Tensor) -> Tensor:
    """Windows of height x width tokens in reading order, (W, height * width) int64; places off the grid hold N.

    Args:
        rows: Of the grid.
        cols: Of the grid; N = rows * cols.
        height: Of a window.
        width: Of a window.
        shift: Begin half a window further up and left.
        like: On the device to use.
    """
    up, left = (height // 2, width // 2) if shift else (0, 0)
    row = _axis(rows, height, up, like)  # windows down, height
    col = _axis(cols, width, left, like)  # windows across, width
    inside = ((row >= 0) & (row < rows))[:, None, :, None] & ((col >= 0) & (col < cols))[None, :, None, :]
    token = row[:, None, :, None] * cols + col[None, :, None, :]
    return torch.where(inside, token, rows * cols).reshape(-1, height * width)


def unpadded(index: Tensor, num_tokens: int) -> list[Tensor]:
    """Windows (W, K) by how many tokens they hold: an index (1, windows, tokens) for each number, no padding."""
    held = index < num_tokens
    sizes = held.sum(1)
    return [index[sizes == size][held[sizes == size]].view(1, -1, size) for size in sorted(set(sizes.tolist()))]


def _axis(length: int, size: int, offset: int, like: Tensor) -> Tensor:
    """Positions along one axis by window, (windows, size)."""
    windows = free_size((length + offset + size - 1) // size)
    start = torch.arange(windows, device=like.device) * size - offset
    return start[:, None] + torch.arange(size, device=like.device)


def sample_positions(rows: int, cols: int, down: int, across: int, like: Tensor) -> Tensor:
    """Tokens at a regular grid of positions from border to border, (down * across,) int64."""
    row, col = _spread(rows, down, like), _spread(cols, across, like)
    return (row[:, None] * cols + col).reshape(-1)


def _spread(length: int, count: int, like: Tensor) -> Tensor:
    """``count`` whole numbers from 0 to length - 1, evenly spaced, rounded."""
    gaps = _between(1, count - 1, count)
    doubled = 2 * (length - 1) * torch.arange(count, device=like.device) + gaps
    return torch.div(doubled, 2 * gaps, rounding_mode="floor")


def block_labels(rows: int, cols: int, down: int, across: int, like: Tensor) -> Tensor:
    """The grid in down x across blocks as equal as can be: each token's block, (N,) int64."""
    row = torch.div(torch.arange(rows, device=like.device) * down, rows, rounding_mode="floor")
    col = torch.div(torch.arange(cols, device=like.device) * across, cols, rounding_mode="floor")
    return (row[:, None] * across + col).reshape(-1)
