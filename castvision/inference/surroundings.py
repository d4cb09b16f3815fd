"""What a predictor may be shown beside its tiles: the whole image at low resolution, and where the tiles lie in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from castvision.data.overview import read_overview

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castvision.data.symmetries import Symmetry
    from castvision.inference.tile_source import TileSource
    from castvision.inference.tiling import Tile


class Surrounded:
    """Shows a predictor the overview with every batch of tiles.

    Args:
        predictor: Called with (B, C, height, width), ``context=`` (1, C, *context size) and ``window=`` (B, 4): top,
            left, height and width of each tile as fractions of the image.
        source: Reads the image.
        size: (height, width) of the overview.
        device: Where the tiles go.
    """

    def __init__(
        self, predictor: Callable[..., Tensor], source: TileSource, size: tuple[int, int], device: torch.device
    ) -> None:
        self.predictor, self.size = predictor, source.size
        self.context = read_overview(source.image, size)[None].to(device)

    def __call__(self, batch: Tensor, tiles: Sequence[Tile], view: Symmetry) -> Tensor:
        """(B, classes, height, width) of the tiles of a batch, which were mirrored and turned as ``view`` says."""
        height, width = self.size
        windows = [
            (
                tile.y.start / height,
                tile.x.start / width,
                (tile.y.stop - tile.y.start) / height,
                (tile.x.stop - tile.x.start) / width,
            )
            for tile in tiles
        ]
        window = view.of_window(torch.tensor(windows, device=batch.device))
        return self.predictor(batch, context=view.of(self.context), window=window)
