"""Averaging a predictor over flips and quarter turns of its input."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

from torch import Tensor

from castvision.data.transforms.symmetries import Symmetry

if TYPE_CHECKING:
    from collections.abc import Callable

VIEWS: dict[str, tuple[Symmetry, ...]] = {
    "none": (Symmetry(),),
    "flips": tuple(Symmetry(turns, is_flipped) for turns, is_flipped in product((0, 2), (False, True))),
    "d4": tuple(Symmetry(turns, is_flipped) for is_flipped, turns in product((False, True), range(4))),
}
"""Of each kind how the input is turned; "flips" are the four of rows and columns."""


def averaged(predict: Callable[[Tensor, Symmetry], Tensor], batch: Tensor, kind: str) -> Tensor:
    """Predict every view, turn the outputs back, and average them.

    A running mean: where all views agree the result is exactly theirs.

    Args:
        predict: (B, C, height, width) and how they were turned to (B, classes, height, width).
        batch: (B, C, height, width), square if the views are turned.
        kind: A key of `VIEWS`.

    Returns:
        (B, classes, height, width).
    """
    mean = None
    for count, view in enumerate(VIEWS[kind], start=1):
        output = view.undo(predict(view.of(batch), view))
        mean = output if mean is None else mean + (output - mean) / count
    if mean is None:
        raise ValueError(f"expected a kind of views in {sorted(VIEWS)}, got {kind=}")
    return mean
