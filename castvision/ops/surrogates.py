"""Surrogates at another number of clusters than they were trained with.

Surrogate tokens are an unordered set, so they are not interpolated. More clusters: the trained ones are repeated in
index order. Fewer: k-means centres of the trained ones, all heads of a surrogate moving together (a cluster is one
clustering for all heads). Either is a linear map of the trained surrogates, through which they keep learning.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 10


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
        return torch.nn.functional.one_hot(source, trained).to(surrogates.dtype)
    points = surrogates.detach().transpose(0, 1).flatten(1).float()  # M, C
    centres = points[_spread(points, num_clusters)]
    for _ in range(_ROUNDS):
        nearest = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        members = torch.nn.functional.one_hot(nearest, num_clusters).to(points.dtype).T  # num_clusters, M
        size = members.sum(1, keepdim=True)
        centres = torch.where(size > 0, members @ points / size.clamp(min=1), centres)
    empty = (size == 0).to(points.dtype)  # a centre that lost its members keeps the point nearest to it
    closest = torch.cdist(centres, points).argmin(1)
    fallback = torch.nn.functional.one_hot(closest, trained).to(points.dtype)
    return (members / size.clamp(min=1) + empty * fallback).to(surrogates.dtype)


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


def _spread(points: Tensor, count: int) -> Tensor:
    """Indices (count,) of points far from each other, greedily from point 0 on: a deterministic start for k-means."""
    chosen = [torch.zeros((), dtype=torch.long, device=points.device)]
    distance = (points - points[0]).square().sum(1)
    for _ in range(count - 1):
        chosen.append(distance.argmax())
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return torch.stack(chosen)
