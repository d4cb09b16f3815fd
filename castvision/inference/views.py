"""Averaging a predictor over flips and quarter turns of its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

VIEWS: dict[str, tuple[tuple[int, bool], ...]] = {
    "none": ((0, False),),
    "flips": ((0, False), (0, True), (2, False), (2, True)),
    "d4": tuple((turns, is_flipped) for is_flipped in (False, True) for turns in range(4)),
}
"""Of each kind the quarter turns and whether columns are flipped before; "flips" are the four of rows and columns."""


def averaged(predict: Callable[[Tensor], Tensor], batch: Tensor, kind: str) -> Tensor:
    """Predict every view, turn the outputs back, and average them.

    A running mean: where all views agree the result is exactly theirs.

    Args:
        predict: (B, C, height, width) to (B, classes, height, width).
        batch: (B, C, height, width), square if the views are turned.
        kind: A key of `VIEWS`.

    Returns:
        (B, classes, height, width).
    """
    mean = None
    for count, (turns, is_flipped) in enumerate(VIEWS[kind], start=1):
        view = batch.flip(-1) if is_flipped else batch
        output = torch.rot90(predict(torch.rot90(view, turns, (-2, -1))), -turns, (-2, -1))
        output = output.flip(-1) if is_flipped else output
        mean = output if mean is None else mean + (output - mean) / count
    if mean is None:
        raise ValueError(f"expected a kind of views in {sorted(VIEWS)}, got {kind=}")
    return mean
