"""What a predictor may be shown beside its tiles: the whole image at low resolution, and where the tiles lie in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from castvision.models.context import make_context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castvision.inference.tile_source import TileSource
    from castvision.inference.tiling import Tile

_BAND_VALUES = 1 << 23
_FINENESS = 8
"""Means over blocks of pixels come first; this many of them or more make up a side of a pixel of the overview."""


def read_overview(source: TileSource, size: tuple[int, int]) -> Tensor:
    """The whole image at low resolution, read by bands.

    Args:
        source: Reads the image.
        size: (height, width) of the overview.

    Returns:
        (1, C, *size) float32 in the image's own range, as `castvision.models.make_context` gives it; of images more
        than eight times as large, means over blocks of pixels stand for the pixels.
    """
    height, width = source.size
    block = max(1, min(height // (_FINENESS * size[0]), width // (_FINENESS * size[1])))
    rows = max(1, _BAND_VALUES // (width * source.image.channels * block)) * block
    bands = []
    for y in range(0, height, rows):
        band = torch.from_numpy(source.values(y, 0, min(rows, height - y), width))  # C, rows, width
        bands.append(F.avg_pool2d(band[None], block, ceil_mode=True))
    return make_context(torch.cat(bands, dim=2), size)


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
        self.context = read_overview(source, size).to(device)

    def __call__(self, batch: Tensor, tiles: Sequence[Tile]) -> Tensor:
        """(B, classes, height, width) of the tiles of a batch."""
        height, width = self.size
        windows = [
            (tile.y.start / height, tile.x.start / width, batch.shape[2] / height, batch.shape[3] / width)
            for tile in tiles
        ]
        return self.predictor(batch, context=self.context, window=torch.tensor(windows, device=batch.device))
