"""What a predictor may be told beside its tiles: where they hold no data, what surrounds them, where they lie in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from castvision.data.reading.overview import read_overview

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castvision.data.transforms.symmetries import Symmetry
    from castvision.inference.tile_source import Mask, Patch, TileSource
    from castvision.inference.tiling import Tile


class Informed:
    """Calls a predictor with what it wants to know beside every batch of tiles, as keywords.

    Args:
        predictor: Called with (B, C, height, width) and, as wanted, ``context=`` (1, C, *context size), ``window=``
            (B, 4): top, left, height and width of each tile as fractions of the image, and ``pixel_mask=``
            (B, height, width) bool, where some pixel of the batch has no data.
        source: Reads the image.
        device: Where the tiles go.
        context_size: (height, width) of the overview; None = no context and no windows.
        mask_nodata: Whether it takes a ``pixel_mask``.
    """

    def __init__(
        self,
        predictor: Callable[..., Tensor],
        source: TileSource,
        device: torch.device,
        *,
        context_size: tuple[int, int] | None = None,
        mask_nodata: bool = False,
    ) -> None:
        self.predictor, self.size, self.mask_nodata = predictor, source.size, mask_nodata
        self.context: Tensor | None = None
        if context_size is not None:
            self.context = read_overview(source.image, context_size)[None].to(device)

    def __call__(self, batch: Tensor, placed: Sequence[tuple[Tile, Patch]], view: Symmetry) -> Tensor:
        """(B, classes, height, width) of the tiles of a batch, which were mirrored and turned as ``view`` says."""
        told: dict[str, Tensor] = {}
        if self.context is not None:
            window = torch.tensor([self._window(tile) for tile, _ in placed], device=batch.device)
            told |= {"context": view.of(self.context), "window": view.of_window(window)}
        masks = [patch.has_data for _, patch in placed]
        if self.mask_nodata and any(mask is not None for mask in masks):
            told["pixel_mask"] = view.of(_stacked(masks).to(batch.device))
        return self.predictor(batch, **told)

    def _window(self, tile: Tile) -> tuple[float, float, float, float]:
        height, width = self.size
        return (
            tile.y.start / height,
            tile.x.start / width,
            (tile.y.stop - tile.y.start) / height,
            (tile.x.stop - tile.x.start) / width,
        )


def _stacked(masks: Sequence[Mask | None]) -> Tensor:
    """(B, height, width) bool; None = True everywhere; one at least is not None."""
    size = next(mask.shape for mask in masks if mask is not None)
    return torch.from_numpy(np.stack([np.ones(size, dtype=bool) if mask is None else mask for mask in masks]))
