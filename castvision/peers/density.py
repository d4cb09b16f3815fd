"""Density peaks with k nearest neighbours, which choose the centres of ClusTR's clusters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 1024
"""Rows of the matrix of distances that are held at once."""


def density_peaks(features: Tensor, num_neighbors: int, token_mask: Tensor | None) -> Tensor:
    """ρ δ of every token, (B, N), of features (B, N, F); -1 of masked ones."""
    number = features.shape[1]
    hidden = torch.zeros(features.shape[:2], dtype=torch.bool, device=features.device)
    hidden = hidden if token_mask is None else ~token_mask
    parts = torch.split(features, _ROWS, 1)
    neighbors = min(num_neighbors + 1, number)  # the first is the token itself
    near = []
    for part in parts:
        far = torch.cdist(part, features).masked_fill(hidden[:, None], torch.inf)
        square = far.topk(neighbors, -1, largest=False)[0].square()
        square = square.masked_fill(square.isinf(), 0.0)
        near.append(square.sum(-1) / max(1, neighbors - 1))
    density = (-torch.cat(near, 1)).exp()
    # ties are broken by the place, or two equal tokens would both be peaks
    rank = density.masked_fill(hidden, -1.0).argsort(stable=True, dim=-1, descending=True).argsort(-1)
    gaps = []
    for part, own in zip(parts, torch.split(rank, _ROWS, 1), strict=True):
        far = torch.cdist(part, features)
        denser = (rank[:, None] < own[..., None]) & ~hidden[:, None]
        least = far.masked_fill(~denser, torch.inf).amin(-1)
        gaps.append(torch.where(denser.any(-1), least, far.masked_fill(hidden[:, None], 0.0).amax(-1)))
    return (density * torch.cat(gaps, 1)).masked_fill(hidden, -1.0)
