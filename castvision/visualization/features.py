"""Dense features as pictures: principal components as colours, similarity to one token, values as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from castvision.visualization.pictures import RGB

Values = np.ndarray[Any, np.dtype[np.floating[Any]]]
_SMALLEST, _LARGEST = 512, 2048


def principal_colours(patches: Tensor, wanted: Tensor | None = None) -> Tensor:
    """Colours by the first three principal components: the picture that DINO's features are known by.

    Args:
        patches: Patch tokens (rows, cols, C), C >= 3; NaN where there is none.
        wanted: Tokens of that form whose components and range are taken, so that equal colours are equal features in
            several pictures; None = ``patches``.

    Returns:
        (rows, cols, 3) float32, 0..1; 1st to 99th percentile of ``wanted`` fill the range. Black where there is none.

    Raises:
        ValueError: Fewer than three channels, or fewer than four tokens.
    """
    reference = (patches if wanted is None else wanted).flatten(0, 1).float()
    reference = reference[reference.isfinite().all(1)]
    if patches.shape[-1] < 3 or len(reference) < 4:
        raise ValueError(
            f"expected at least 4 tokens of 3 channels for three components, got {len(reference)} of "
            f"{patches.shape[-1]}; give a larger image"
        )
    mean = reference.mean(0)
    centred = reference - mean
    _, axes = torch.linalg.eigh((centred.T @ centred).double())  # of ascending variance
    directions = axes[:, -3:].flip(1).to(centred)
    placed = centred @ directions
    ends = [np.quantile(placed.numpy(), end, axis=0) for end in (0.01, 0.99)]  # torch's takes 2**24 values at most
    low, high = (torch.from_numpy(end).to(placed) for end in ends)
    colours = ((patches.float() - mean) @ directions - low) / (high - low).clamp(min=1e-12)
    known: Tensor = colours.nan_to_num(0.0).clamp(0, 1)
    return known


def similarity(patches: Tensor, row: int, col: int) -> Tensor:
    """Cosine of every token to one of them.

    Args:
        patches: (rows, cols, C); NaN where there is none.
        row: Of the token.
        col: Of the token.

    Returns:
        (rows, cols) float32, -1..1; NaN where there is none.

    Raises:
        ValueError: There is no token at that place.
    """
    one = patches[row, col].float()
    if not one.isfinite().all():
        raise ValueError(f"expected a place with features, got row {row}, column {col}, which holds none; name another")
    return functional.cosine_similarity(patches.float(), one.expand_as(patches), dim=-1)


def heat_map(values: Values, low: float | None = None, high: float | None = None) -> RGB:
    """Values as colours, from dark violet (low) to yellow (high).

    Args:
        values: (rows, cols); NaN becomes black.
        low: The value of the darkest colour; None = the smallest.
        high: The value of the brightest; None = the largest.

    Returns:
        (rows, cols, 3) uint8.
    """
    from matplotlib import colormaps  # imported here: it takes half a second that most callers need not wait for

    known = np.isfinite(values)
    found = values[known].astype(np.float64) if known.any() else np.zeros(1)
    low, high = float(found.min()) if low is None else low, float(found.max()) if high is None else high
    scaled = (np.where(known, values, low).astype(np.float64) - low) / max(high - low, 1e-12)
    colours: RGB = colormaps["viridis"](scaled.clip(0, 1), bytes=True)[..., :3].copy()
    colours[~known] = 0
    return colours


def enlarged(picture: RGB, cell: int) -> RGB:
    """A picture with one pixel a token, at about the image's size: each pixel repeated, so that none is invented.

    Args:
        picture: (rows, cols, 3).
        cell: Pixels of the image along a token; the result has at most 2,048 pixels a side unless the picture has more,
            and at least 512.

    Returns:
        (rows * factor, cols * factor, 3).
    """
    side = max(picture.shape[:2])
    factor = max(min(cell, _LARGEST // side), -(-_SMALLEST // side), 1)
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)
