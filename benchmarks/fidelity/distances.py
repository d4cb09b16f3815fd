"""How far features are from those of full attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from benchmarks.fidelity.features import Features


def compare_patches(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Distances of an image's patch tokens.

    Args:
        found: (N, C).
        wanted: Full attention's, (N, C).

    Returns:
        "unexplained": squared difference over the variance of ``wanted`` around its mean token, 0 for the same, 1 for
        no better than that mean. "shift": the share of the squared difference that one vector added to all tokens
        would undo. "cosine": mean over tokens.
    """
    found, wanted = found.double(), wanted.double()
    difference = found - wanted
    squared = difference.square().sum()
    variance = (wanted - wanted.mean(0)).square().sum()
    shift = len(found) * difference.mean(0).square().sum()
    return {
        "unexplained": float(squared / variance) if squared else 0.0,
        "shift": float(shift / squared) if squared else 0.0,
        "cosine": float(F.cosine_similarity(found, wanted).mean()),
    }


def compare(found: Features, wanted: Features) -> dict[str, object]:
    """Distances at the end, after each block where there are any, and "class_cosine", the prefix tokens' (None: none).

    Args:
        found: Of a setting.
        wanted: Full attention's, with blocks.
    """
    prefix = len(wanted.prefix)

    def class_cosine(ours: Tensor, theirs: Tensor) -> float | None:
        return float(F.cosine_similarity(ours.double(), theirs.double()).mean()) if prefix else None

    blocks = [
        {**compare_patches(a[prefix:], b[prefix:]), "class_cosine": class_cosine(a[:prefix], b[:prefix])}
        for a, b in zip(found.blocks or (), wanted.blocks or () if found.blocks else (), strict=True)
    ]
    end = compare_patches(found.patches.flatten(0, 1), wanted.patches.flatten(0, 1))
    return {**end, "class_cosine": class_cosine(found.prefix, wanted.prefix), "blocks": blocks}
