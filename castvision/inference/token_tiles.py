"""Dense features of images of any size: tiles in, tokens out, joined as `tiled_inference` joins classes.

The grid of tiles is laid over tokens, not pixels: a tile's pixels are folded into one vector for each patch on the way
in, so that everything that knows where tiles lie works on the grid of tokens.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from castvision.data.transforms.model_input import planes_to_input
from castvision.inference.sinks import FileSink
from castvision.inference.tile_source import Skip, TileInput, TileSource
from castvision.inference.tiled import Settings, TiledRun
from castvision.inference.tiling import Span, Tile, make_grid
from castvision.inference.torch_runtime import TorchRuntime

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from castvision.data import ImageReader
    from castvision.inference.feature_model import FeatureModel

Pixels = np.ndarray[Any, np.dtype[Any]]
_MOST_PIXELS = 1 << 27


class FeatureSink(FileSink):
    """A `FileSink` of half or single precision that also adds up what is written.

    Args:
        path: Of the file.
        dtype: "float16" or "float32".

    Attributes:
        total: (C,) float64, the sum over all tokens.
        count: Tokens.
    """

    def __init__(self, path: Path, dtype: str = "float16") -> None:
        super().__init__(path)
        self.stored = np.dtype(dtype)
        self.total: np.ndarray[Any, np.dtype[np.float64]] = np.zeros(0)
        self.count = 0

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: float) -> None:
        """See `Sink`."""
        super().allocate(shape, self.stored, fill)
        self.total = np.zeros(shape[-1])

    def write(self, y: int, x: int, block: Pixels) -> None:
        """See `Sink`.

        Raises:
            ValueError: A value that half precision cannot hold.
        """
        known = block[~np.isnan(block[..., 0])].astype(np.float64)
        if known.size and np.abs(known).max() > np.finfo(self.stored).max:
            raise ValueError(
                f"expected features within half precision, got {np.abs(known).max():g}; write them by --dtype float32"
            )
        self.total += known.sum(axis=0)
        self.count += len(known)
        super().write(y, x, block)

    @property
    def mean(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(C,) over all tokens; NaN without any."""
        return (self.total / self.count if self.count else np.full_like(self.total, np.nan)).astype(np.float32)

    def thinned(self, most: int) -> tuple[Tensor, int]:
        """Every ``step``-th token of rows and columns, (rows', cols', C) float32, of at most ``most`` values."""
        step = max(1, math.ceil(math.sqrt(math.prod(self.shape) / most)))
        return torch.from_numpy(self.read(0, 0, self.shape[0], self.shape[1], step).astype(np.float32)), step


class TokenSource(TileSource):
    """Reads a grid's tiles, each patch of pixels folded into one vector.

    Args:
        image: The image.
        level: Of its pyramid.
        skip: What to leave out.
        patch: (height, width) of a patch.

    Attributes:
        size: (rows, cols) of tokens that cover the image; patches that reach beyond it are continued by reflection.
    """

    def __init__(self, image: ImageReader, level: int, skip: Skip, patch: tuple[int, int]) -> None:
        super().__init__(image, level, skip, missing=math.nan)
        self.source, self.patch = TileSource(image, level, skip, missing=math.nan), patch
        height, width = self.source.size
        self.size = -(-height // patch[0]), -(-width // patch[1])

    def read(self, tile: Tile) -> TileInput:
        """Pixels (C * patch height * patch width, rows, cols) of a tile whose spans count tokens."""
        high, wide = self.patch
        taken = self.source.read(Tile(tile.row, tile.col, _in_pixels(tile.y, high), _in_pixels(tile.x, wide)))
        used = (tile.y.high - tile.y.low, tile.x.high - tile.x.low)
        valid = None if taken.valid is None else _any_of_patch(taken.valid, used, self.patch)
        if taken.pixels is None:
            return TileInput(None, valid)
        return TileInput(_fold(taken.pixels, self.patch), None if valid is None or valid.all() else valid)


def _in_pixels(span: Span, patch: int) -> Span:
    return Span(span.start * patch, span.stop * patch, span.low * patch, span.done * patch, span.high * patch)


def _any_of_patch(valid: Pixels, tokens: tuple[int, int], patch: tuple[int, int]) -> Pixels:
    rows, cols = tokens
    missing = [(0, number * side - here) for number, side, here in zip(tokens, patch, valid.shape, strict=True)]
    blocks: Pixels = np.pad(valid, missing).reshape(rows, patch[0], cols, patch[1])
    return np.asarray(blocks.any(axis=(1, 3)))


def _fold(pixels: Pixels, patch: tuple[int, int]) -> Pixels:
    channels, height, width = pixels.shape
    rows, cols = height // patch[0], width // patch[1]
    folded = pixels.reshape(channels, rows, patch[0], cols, patch[1]).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(folded.reshape(-1, rows, cols))


class TokenPredictor:
    """Unfolds tiles of a `TokenSource` and embeds them.

    Args:
        model: The backbone.
        channels: Of the image; grey and RGB are turned into one another.
        limits: The values that become 0 and 1, see `model_range`; None = the image keeps its units.
        precision: See `FeatureModel.tokens`.

    Attributes:
        class_total: Sum of the class tokens of all tiles, (C,) float64.
        tiles: How many those are.

    Raises:
        ValueError: The image's channels do not fit the model.
    """

    def __init__(
        self, model: FeatureModel, channels: int, limits: tuple[float, float] | None, precision: str = "fp32"
    ) -> None:
        check_channels(model, channels)
        self.model, self.limits, self.precision = model, limits, precision
        self.class_total = torch.zeros(model.channels, dtype=torch.float64)
        self.tiles = 0

    def __call__(self, batch: Tensor) -> Tensor:
        """(B, channels * patch, rows, cols) float32 in the image's range to (B, C, rows, cols)."""
        high, wide = self.model.patch
        rows, cols = batch.shape[-2:]
        planes = batch.reshape(len(batch), -1, high, wide, rows, cols).permute(0, 1, 4, 2, 5, 3).reshape(
            len(batch), -1, rows * high, cols * wide
        )  # fmt: skip
        found = self.model.tokens(as_input(self.model, planes, self.limits), self.precision)
        if found.class_token is not None:
            self.class_total += found.class_token.double().sum(0).cpu()
        self.tiles += len(batch)
        return found.patches.permute(0, 3, 1, 2)

    @property
    def class_mean(self) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        """(C,): the class token, of several tiles their mean; None of a model without one."""
        if not self.model.has_class_token or not self.tiles:
            return None
        return (self.class_total / self.tiles).float().numpy()


def check_channels(model: FeatureModel, channels: int) -> None:
    """Refuse an image of other channels than the model's, but for grey and RGB, which are turned into one another.

    Raises:
        ValueError: It names both.
    """
    wanted = model.predictor.parts.input.in_chans
    if channels != wanted and {channels, wanted} != {1, 3}:
        raise ValueError(
            f"expected an image with {wanted} channels for {model.name}, got {channels}; choose some with --bands"
        )


def as_input(model: FeatureModel, planes: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """Planes in the image's range, normalised for the model; see `planes_to_input`."""
    seen = model.predictor.parts.input
    return planes_to_input(planes, seen.in_chans, seen.mean, seen.std, limits)


def embed_tokens(
    predictor: TokenPredictor,
    reader: ImageReader,
    sink: FeatureSink,
    *,
    level: int = 0,
    tile: int | None = None,
    overlap: int | None = None,
    batch_size: int = 4,
    skip: Skip | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mapping[str, Any]:
    """Features of an image, one vector a patch, (rows, cols, C), into a sink; NaN where there is no data.

    Args:
        predictor: The model, set up for this image.
        reader: The image.
        sink: Where they go.
        level: Of the image's pyramid.
        tile: Side of a tile in pixels, a multiple of the patch; None = the whole image at once.
        overlap: Pixels that neighbouring tiles share, a multiple of the patch; None = about an eighth of a tile. A
            quarter of it is discarded on each side, the rest blended.
        batch_size: Tiles at once.
        skip: What to leave out.
        progress: Told (tiles done, tiles in all).

    Returns:
        "tiles", "tiles_skipped" and "tile" (height, width) in pixels.

    Raises:
        ValueError: A tile that the model does not take, or an image too large to be shown as a whole.
    """
    patch = predictor.model.patch
    source = TokenSource(reader, level, skip or Skip(), patch)
    if tile is None:
        height, width = source.source.size
        if height * width > _MOST_PIXELS:
            raise ValueError(
                f"expected --tile for {reader.name!r}, which is too large to be shown as a whole: {height} × {width} "
                f"pixels; give --tile {64 * patch[0]}, or a coarser --mpp"
            )
        sides, shared = source.size, 0
    else:
        check_tile(predictor.model, tile)
        check_overlap(predictor.model, tile, overlap)
        sides = tile // patch[0], tile // patch[1]
        shared = min(sides) // 8 if overlap is None else overlap // patch[0]
    grid = make_grid(source.size, sides, shared, shared // 4)
    settings = Settings(batch_size, "none", "fp32", "none", "image")
    run = TiledRun(source, grid, settings, sink, TorchRuntime(predictor.model.predictor.device, settings.precision))
    totals, _ = run(lambda batch, placed, view: predictor(batch), progress)
    if not totals.tiles_run:
        raise ValueError(f"no tile of {reader.name!r} holds anything to embed; check its mask and its nodata")
    return {
        "tiles": totals.tiles_run,
        "tiles_skipped": totals.tiles_skipped,
        "tile": [sides[0] * patch[0], sides[1] * patch[1]],
    }


def check_tile(model: FeatureModel, tile: int) -> None:
    """Refuse a tile that is no whole number of patches.

    Raises:
        ValueError: It names sizes that are.
    """
    step = math.lcm(*model.patch)
    if tile % step:
        near = max(tile // step, 1) * step
        raise ValueError(
            f"expected --tile a multiple of {step}, the patch of {model.name}, got {tile}; take {near} or {near + step}"
        )


def check_overlap(model: FeatureModel, tile: int, overlap: int | None) -> None:
    """Refuse an overlap of dense features that is no whole number of patches, or too large for the tile.

    Raises:
        ValueError: It names both.
    """
    if overlap is None:
        return
    step = math.lcm(*model.patch)
    if overlap % step:
        raise ValueError(f"expected --overlap a multiple of {step}, the patch of {model.name}, got {overlap}")
    shared, side = overlap // model.patch[0], tile // model.patch[0]
    if shared >= side or 2 * (shared - shared // 4) > side:
        raise ValueError(
            f"expected --overlap at most about two thirds of --tile {tile}, got {overlap}; use larger tiles or less "
            "overlap"
        )
