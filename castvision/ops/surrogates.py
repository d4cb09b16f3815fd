"""What clusters form around, and who joins them.

*Sampled* surrogates are the image's own: head means of the keys of tokens on a regular grid, moved by k-means. They
are no parameters and need no training. *Averaged* ones are the same points kept over images by a moving average.
*Learned* ones are the paper's parameters (arXiv 2402.04239), scored by :mod:`castvision.ops.paper_routing`.

Learned surrogates at another number of clusters: they are an unordered set, so they are not interpolated. More
clusters: the trained ones are repeated in index order. Fewer: k-means centres of the trained ones, all heads of a
surrogate moving together. Either is a linear map of the trained surrogates, through which they keep learning.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.ops.arithmetic import is_eager, wide_dtype
from castvision.ops.options import AttentionOptions
from castvision.ops.paper_routing import learned_clusters, matched_clusters, nearest_learned
from castvision.ops.partitions import (
    Routing,
    block_labels,
    cluster_grid,
    index_of,
    labels_of,
    random_index,
    sample_positions,
)


def form_clusters(
    q: Tensor,
    k: Tensor,
    options: AttentionOptions,
    grid: list[int],
    token_mask: Tensor | None,
    surrogate_tokens: Tensor | None,
    phi: Tensor | None,
    seed: int,
) -> Routing:
    """The clusters of each image, without a gradient.

    Args:
        q: Queries, (B, N, H, D), without prefix tokens.
        k: Keys, (B, N, H, D).
        options: Which clusters.
        grid: (rows, cols) of the first tokens, where sampled surrogates come from; others may follow.
        token_mask: True where a token is real, (B, N) bool, or None; others join nothing.
        surrogate_tokens: Learned (H, M, D) or averaged (M, D) surrogates, or None.
        phi: (B, N, 1) for learned ones.
        seed: Of "random".
    """
    batch, num_tokens = k.shape[0], k.shape[1]
    down, across = cluster_grid(grid[0], grid[1], options.num_clusters, options.cluster_factor)
    clusters = down * across
    if surrogate_tokens is not None and options.assignment != "blocks":
        clusters = surrogate_tokens.shape[surrogate_tokens.dim() - 2]
    size = (num_tokens + clusters - 1) // clusters
    given = options.cluster_size
    if given is not None:
        size = min(given, num_tokens)
    labels: Tensor | None = None
    index: Tensor | None = None
    if options.assignment == "blocks":
        blocks = block_labels(grid[0], grid[1], down, across, k)
        most = ((grid[0] + down - 1) // down) * ((grid[1] + across - 1) // across)
        if len(grid) > 2:  # the tokens of all further grids are one block
            rest = num_tokens - grid[0] * grid[1]
            blocks = F.pad(blocks, (0, rest), value=float(clusters))
            clusters, most = clusters + 1, max(most, rest)
        index = index_of(blocks, clusters, most)[None].expand(batch, -1, -1)
    elif options.assignment == "random":
        index = random_index(num_tokens, clusters, size, seed, k)[None].expand(batch, -1, -1)
    elif options.surrogates == "learned":
        torch._assert(surrogate_tokens is not None and phi is not None, "expected surrogate_tokens and phi")
        if surrogate_tokens is not None and phi is not None:
            score, activation = options.routing_score, options.activation
            if options.assignment == "nearest":
                labels = nearest_learned(q, k, surrogate_tokens, phi, activation, score)
            else:
                kind = options.assignment
                index = learned_clusters(q, k, surrogate_tokens, phi, token_mask, size, kind, activation, score)
    else:
        features = routing_features(k)
        positions = sample_positions(grid[0], grid[1], down, across, k)
        if surrogate_tokens is None:
            centers, usable = sample_surrogates(features, positions, options.refinements, token_mask)
        else:
            centers = surrogate_tokens.detach().to(features.dtype)[None].expand(batch, -1, -1)
            usable = torch.ones([batch, clusters], dtype=torch.bool, device=k.device)
        if options.assignment == "nearest":
            labels = nearest(features, centers, usable)
        else:
            index = matched_clusters(features, centers, usable, token_mask, size)
    if index is not None and options.assignment != "topk":
        labels = labels_of(index, num_tokens)
    if labels is not None and token_mask is not None:
        labels = labels.masked_fill(~token_mask, clusters)
    return Routing(options.assignment, clusters, labels, index)


def routing_features(k: Tensor) -> Tensor:
    """What clusters are formed on: the mean over heads of keys (B, N, H, D), (B, N, D) fp32 or float64, no gradient."""
    return k.detach().mean(2, dtype=wide_dtype(k.dtype))


def sample_surrogates(
    features: Tensor, positions: Tensor, refinements: int, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Surrogates of every image, from features at given tokens and some steps of k-means.

    Args:
        features: (B, N, F).
        positions: Tokens to start from, (M,).
        refinements: Steps of k-means; a surrogate that nobody joins stays.
        token_mask: True where a token is real, (B, N); others give no start and move nothing.

    Returns:
        Surrogates (B, M, F), and which of them may be joined, (B, M) bool.
    """
    surrogates = features.index_select(1, positions)
    usable = torch.ones(surrogates.shape[:2], dtype=torch.bool, device=features.device)
    if token_mask is not None:
        usable = token_mask.index_select(1, positions)
    for _ in range(refinements):
        labels = nearest(features, surrogates, usable)
        if token_mask is not None:
            labels = labels.masked_fill(~token_mask, surrogates.shape[1])
        count, total = cluster_sums(features, labels, surrogates.shape[1])
        surrogates = torch.where(count > 0, total / count.clamp(min=1), surrogates)
        usable = usable | (count[..., 0] > 0)
    return surrogates, usable


def nearest(features: Tensor, surrogates: Tensor, usable: Tensor) -> Tensor:
    """Each token's nearest surrogate, (B, N) int64, the first of equals.

    features: (B, N, F); surrogates: (B, M, F); usable: whether one may be joined, (B, M) bool.
    """
    bias = (-0.5 * surrogates.square().sum(-1)).masked_fill(~usable, -torch.inf)[:, None]  # B, 1, M
    towards = surrogates.transpose(1, 2)
    if is_eager():
        step = max(1, 524288 // (surrogates.shape[1] * features.shape[0]))  # 2 MiB of scores stay in a CPU's cache
        out = torch.cat([torch.baddbmm(bias, some, towards).argmax(2) for some in torch.split(features, step, 1)], 1)
    else:
        out = torch.baddbmm(bias, features, towards).argmax(2)
    return out


def cluster_sums(rows: Tensor, labels: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Number (B, M, 1) and sum (B, M, F) of the rows (B, N, F) with each label (B, N); M: of none."""
    if rows.device.type == "cpu" and is_eager():
        batch, places = rows.shape[0], num_clusters + 1
        at = (labels + torch.arange(batch)[:, None] * places).flatten()
        flat = rows.flatten(0, 1)
        count = torch.zeros([batch * places, 1], dtype=rows.dtype).index_add_(0, at, torch.ones_like(flat[:, :1]))
        total = torch.zeros([batch * places, rows.shape[2]], dtype=rows.dtype).index_add_(0, at, flat)
        count, total = count.view(batch, places, 1), total.view(batch, places, rows.shape[2])
        return count[:, :num_clusters], total[:, :num_clusters]
    member = (labels[:, None] == torch.arange(num_clusters, device=labels.device)[:, None]).to(rows.dtype)  # B, M, N
    return member.sum(2, keepdim=True), member @ rows


def resampling_matrix(surrogates: Tensor, num_clusters: int) -> Tensor:
    """The linear map from M trained to ``num_clusters`` surrogates.

    Args:
        surrogates: (H, M, D).
        num_clusters: How many are wanted, at least 1.

    Returns:
        Matrix (num_clusters, M) in the surrogates' dtype, rows summing to one, without a gradient. The identity if
        the number stays.
    """
    trained = surrogates.shape[1]
    if num_clusters >= trained:
        source = torch.arange(num_clusters, device=surrogates.device) % trained
        return F.one_hot(source, trained).to(surrogates.dtype)
    points = surrogates.detach().transpose(0, 1).flatten(1).float()[None]  # 1, M, C
    first = torch.zeros([1], dtype=torch.long, device=points.device)
    start = farthest_first(points, num_clusters, first, torch.zeros_like(points[..., 0], dtype=torch.bool))
    centers, usable = sample_surrogates(points, start[0], 10, None)
    members = F.one_hot(nearest(points, centers, usable)[0], num_clusters).to(points.dtype).T  # num_clusters, M
    size = members.sum(1, keepdim=True)
    closest = nearest(centers, points, torch.ones_like(points[..., 0], dtype=torch.bool))[0]
    alone = F.one_hot(closest, trained).to(points.dtype)  # a centre that lost its members keeps the point nearest to it
    return torch.where(size > 0, members / size.clamp(min=1), alone).to(surrogates.dtype)


def resample_surrogates(surrogates: Tensor, num_clusters: int) -> Tensor:
    """Surrogates (H, M, D) as (H, num_clusters, D), by the rule above, differentiable in the surrogates.

    Raises:
        ValueError: ``num_clusters`` below 1 or surrogates without three axes.
    """
    if surrogates.ndim != 3 or num_clusters < 1:
        raise ValueError(
            f"expected surrogates (H, M, D) and num_clusters >= 1, got {tuple(surrogates.shape)} and {num_clusters=}"
        )
    return torch.einsum("nm,hmd->hnd", resampling_matrix(surrogates, num_clusters), surrogates)


def farthest_first(points: Tensor, number: int, first: Tensor, hidden: Tensor) -> Tensor:
    """Points far from each other, greedily: each next one is the farthest from all chosen. Without a gradient.

    Args:
        points: (B, N, F).
        number: How many; where fewer differ, some are chosen again.
        first: Where to start, (B,) int64.
        hidden: Points that are never chosen, (B, N) bool.

    Returns:
        Indices (B, number) int64.
    """
    square = points.square().sum(2, keepdim=True)
    one = torch.ones_like(square)
    rows, columns = torch.cat([points, square, one], 2), torch.cat([-2 * points, one, square], 2)  # squared distances
    distance = torch.full_like(square[..., 0], torch.inf).masked_fill(hidden, -torch.inf)
    newest, chosen = first, [first]
    for _ in range(number - 1):
        column = columns.gather(1, newest[:, None, None].expand(-1, -1, columns.shape[2])).transpose(1, 2)
        distance = torch.minimum(distance, torch.bmm(rows, column)[..., 0])
        newest = distance.argmax(1)
        chosen.append(newest)
    return torch.stack(chosen, 1)
