"""Putting a predictor's outputs together: averaged over views of a tile, and joined across tiles without seams.

Tiles are joined band by band, in memory that grows with the width only. A tile's used part is joined to the strip its
left neighbour left over, then to the strip the band above left over. What neither the next tile nor the next band will
change is handed out at once, so that an argmax can be taken while the rest is still to come: no buffer of (classes,
height, width), not even of (classes, tile, width).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.arrays import namespace
from castvision.data.transforms.symmetries import Symmetry

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from castvision.inference.tiling import Tile, TileGrid

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
        batch: (B, C, height, width); views that are turned have height and width exchanged.
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


def hann_ramp(width: int, device: torch.device | str = "cpu", xp: Any = None) -> Tensor:
    """Weights of the newer of two tiles across their common strip; the older one's are one minus these.

    Rounded to multiples of 2**-23, so that both weights are float32 and their sum is exactly 1.

    Args:
        width: Of the strip, >= 0.
        device: Where it is wanted.
        xp: torch or numpy; None = torch.

    Returns:
        (width,) float32, rising within 0..1; the reversed ramp is one minus the ramp.
    """
    xp = xp or importlib.import_module("torch")
    step = (xp.arange(width, dtype=xp.float64) + 0.5) / max(width, 1)
    ramp = xp.square(xp.sin(step * math.pi / 2))
    rounded: Tensor = xp.asarray(xp.round(ramp * 2**23) / 2**23, dtype=xp.float32, device=device)
    return rounded


def blend(old: Tensor, new: Tensor, weight: Tensor) -> Tensor:
    """Go from the older values to the newer; where both agree the result is exactly theirs.

    Args:
        old: Any shape, float32.
        new: The same shape.
        weight: Of the newer, broadcastable.

    Returns:
        The same shape.
    """
    xp = namespace(old)
    mixed: Tensor
    if xp is np:  # as torch.lerp has it
        step = new - old
        mixed = xp.where(weight < 0.5, old + weight * step, new - step * (1 - weight))
    else:
        mixed = xp.lerp(old, new, weight)
    return mixed


@dataclass
class SeamSums:
    """Disagreement of neighbouring tiles, summed over their common strips.

    Attributes:
        pixels: Compared so far.
        labels: Pixels whose most probable class differs.
        difference: Absolute difference, averaged over channels, summed over pixels.
    """

    pixels: int = 0
    labels: int = 0
    difference: float = 0.0

    def add(self, old: Tensor, new: Tensor) -> None:
        """Compare two (C, height, width)."""
        xp = namespace(old)
        self.pixels += math.prod(old[0].shape)
        self.labels += int((old.argmax(0) != new.argmax(0)).sum())
        self.difference += float(xp.sum(abs(old - new).mean(0), dtype=xp.float64))


@dataclass(frozen=True)
class Block:
    """Values that are complete.

    Attributes:
        values: (C, height, width) float32.
        known: (height, width) bool; False where no tile was run.
    """

    values: Tensor
    known: Tensor


class BandJoiner:
    """Takes a grid's tiles in reading order and hands out what is complete.

    Args:
        grid: Where the tiles lie.
        channels: Of the values.
        device: Where the values are.
        seam: Adds up how far neighbours disagree.
        xp: torch or numpy, whose arrays the values are; None = torch.
    """

    def __init__(
        self, grid: TileGrid, channels: int, device: torch.device | str, seam: SeamSums, xp: Any = None
    ) -> None:
        self.grid, self.seam = grid, seam
        self._xp: Any = xp or importlib.import_module("torch")
        self._device = device
        self._ramp = hann_ramp(grid.zone, device, self._xp)
        has_bands, has_cols = len(grid.rows) > 1, len(grid.cols) > 1
        self._above = self._zeros(channels, grid.zone if has_bands else 0, grid.width)
        self._above_known = self._filled(grid.width, False)
        self._left = self._zeros(channels, grid.tile[0], grid.zone if has_cols else 0)
        self._left_known = self._filled(self._left.shape[2], False)

    def _zeros(self, *shape: int) -> Tensor:
        zeros: Tensor = self._xp.zeros(shape, dtype=self._xp.float32, device=self._device)
        return zeros

    def _filled(self, length: int, value: bool) -> Tensor:
        filled: Tensor = self._xp.full((length,), value, dtype=self._xp.bool, device=self._device)
        return filled

    def _copy(self, values: Tensor) -> Tensor:
        copied: Tensor = self._xp.asarray(values, copy=True)
        return copied

    def join(self, tile: Tile, values: Tensor | None) -> Block:
        """Join the next tile.

        Args:
            tile: Of the grid, in reading order.
            values: (C, tile height, tile width) float32, margins included; None = the tile was not run.

        Returns:
            The values of rows ``tile.y.low..done`` and columns ``tile.x.low..done``.
        """
        y, x = tile.y, tile.x
        used = self._used(tile, values)
        known = self._filled(x.high - x.low, values is not None)
        if tile.col:
            strip = used[:, :, : self.grid.zone]
            left = self._left[:, : used.shape[1]]
            strip[:] = self._mix(left, strip, self._left_known, known[: self.grid.zone], self._ramp)
            known[: self.grid.zone] |= self._left_known
        if x.high > x.done:
            self._left[:, : used.shape[1]] = used[:, :, x.done - x.low :]
            self._left_known = self._copy(known[x.done - x.low :])
        return self._join_above(tile, used[:, :, : x.done - x.low], known[: x.done - x.low], y.done - y.low)

    def _used(self, tile: Tile, values: Tensor | None) -> Tensor:
        y, x = tile.y, tile.x
        if values is None:
            return self._zeros(len(self._above), y.high - y.low, x.high - x.low)
        top, left, _, _ = tile.margins
        return self._copy(values[:, top : top + y.high - y.low, left : left + x.high - x.low])

    def _join_above(self, tile: Tile, used: Tensor, known: Tensor, rows: int) -> Block:
        zone = self.grid.zone
        columns = slice(tile.x.low, tile.x.done)
        above, above_known = self._above[:, :, columns], self._above_known[columns]
        known_map = self._xp.broadcast_to(known, (rows, known.shape[0]))
        if tile.row:
            strip = used[:, :zone]
            strip[:] = self._mix(above, strip, above_known, known, self._ramp[:, None])
            if not known.all():
                known_map = self._copy(known_map)
                known_map[:zone] |= above_known
        if tile.y.high > tile.y.done:
            above[:] = used[:, rows:]
            above_known[:] = known
        return Block(used[:, :rows], known_map)

    def _mix(self, old: Tensor, new: Tensor, old_known: Tensor, new_known: Tensor, weight: Tensor) -> Tensor:
        """Blend where both are known (whole columns), else take the one that is."""
        both = old_known & new_known
        if both.all():
            self.seam.add(old, new)
            return blend(old, new, weight)
        if both.any():
            self.seam.add(old[:, :, both], new[:, :, both])
        where = self._xp.where
        mixed: Tensor = where(both, blend(old, new, weight), where(new_known, new, old))
        return mixed
