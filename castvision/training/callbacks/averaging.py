"""Averaged weights that are worth something after a hundred steps, too."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import WeightAveraging

if TYPE_CHECKING:
    from torch import Tensor


class WarmAveraging(WeightAveraging):
    """An exponential moving average of weights and buffers, taken every step, whose decay warms up.

    After step t the average keeps min(decay, (1 + t) / (10 + t)) of itself. With the full decay from the start, a short
    run's average would be that of its first, untrained steps: 0.999 still holds 90 % of them after a hundred.

    Args:
        decay: The share it keeps in the end, 0 to 1.

    Raises:
        ValueError: A decay out of range.
    """

    def __init__(self, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"expected 0 < ema < 1, got ema={decay}")
        super().__init__(avg_fn=partial(average, decay=decay))


def average(kept: Tensor, current: Tensor, steps: Tensor | int, decay: float) -> Tensor:
    """The average after one step more.

    Args:
        kept: The average so far, any shape.
        current: The weights of the newest step, same shape.
        steps: Steps that are in the average, >= 1.
        decay: See `WarmAveraging`.

    Returns:
        Same shape.
    """
    warm = (1 + steps) / (10 + steps)
    share = min(decay, warm) if isinstance(warm, float) else warm.clamp(max=decay)  # stays where it is: no waiting
    return current + share * (kept - current)  # exact for what is frozen
