"""Embeddings of a slide's tiles: a grid at one scale, without what holds no tissue, batch by batch into HDF5."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from castvision.data.reading.bags import OBJECTIVE, BagWriter
from castvision.inference.scale import choose_level
from castvision.inference.tile_model import model_range
from castvision.inference.tile_source import Skip, TileSource
from castvision.inference.tiling import Span, Tile
from castvision.inference.token_tiles import as_input, check_channels, check_tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from castvision.data import ImageReader
    from castvision.inference.feature_model import FeatureModel, Tokens
    from castvision.inference.tissue import Mask

POOLS = ("class", "mean", "class+mean")
"""How the tokens of a tile become one vector."""
_SAME = 1.02


@dataclass(frozen=True)
class TileOptions:
    """How a slide is cut and embedded.

    Attributes:
        tile: Side that the model sees, in pixels at the scale worked at.
        overlap: Pixels that neighbours share.
        mpp: Microns (or ground units) a pixel that tiles are brought to; None = the pixels of level 0.
        pool: One of `POOLS`.
        min_foreground: A tile with a smaller share of tissue, and one without any data, is left out.
        batch_size: Tiles at once.
        precision: See `FeatureModel.tokens`.

    Raises:
        ValueError: Tiles that overlap wholly.
    """

    tile: int
    overlap: int = 0
    mpp: float | None = None
    pool: str = "class"
    min_foreground: float = 0.25
    batch_size: int = 16
    precision: str = "fp32"

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile:
            raise ValueError(f"expected an overlap smaller than the tile of {self.tile} pixels, got {self.overlap}")


@dataclass(frozen=True)
class Cut:
    """Where a slide's tiles lie.

    Attributes:
        level: Of the pyramid, that is read.
        side: Of a tile in pixels of that level.
        step: From one tile to the next, likewise.
        downsample: Pixels of level 0 along one of the level, down and across.
    """

    level: int
    side: int
    step: int
    downsample: tuple[float, float]


def cut(reader: ImageReader, options: TileOptions) -> Cut:
    """Choose the level: the coarsest one that is fine enough, so that its tiles are made smaller and not larger.

    Raises:
        ValueError: No level is near the scale, the image states none, or it is smaller than a tile.
    """
    level, factor = 0, 1.0
    if options.mpp is not None:
        choose_level(reader, options.mpp)  # refuses what is too far from all levels
        sizes = [(reader.mpp or 0.0) * each.downsample for each in reader.levels]
        fine = [number for number, size in enumerate(sizes) if size <= options.mpp * _SAME]
        level = fine[-1] if fine else 0
        factor = options.mpp / sizes[level]
        factor = 1.0 if 1 / _SAME <= factor <= _SAME else factor
    side, step = round(options.tile * factor), max(1, round((options.tile - options.overlap) * factor))
    size = reader.levels[level]
    if min(size.height, size.width) < side:
        raise ValueError(
            f"expected an image of at least one tile, {side} × {side} pixels of level {level}, got {size.height} × "
            f"{size.width} in {reader.name!r}; give a smaller --tile"
        )
    return Cut(level, side, step, reader.pixels_across(level))


def embed_tiles(
    model: FeatureModel,
    reader: ImageReader,
    path: Path,
    name: str,
    options: TileOptions,
    *,
    tissue: Mask | None = None,
    mask: ImageReader | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Embed a slide's tiles and write them in the layout of CLAM and TRIDENT; see `castvision.data.reading.bags`.

    Tiles lie wholly inside the image: less than a tile is left at the right and at the bottom.

    Args:
        model: The backbone.
        reader: The slide.
        path: Of the new file.
        name: Of the slide, in the file.
        options: How.
        tissue: (height, width) bool of any size over the whole image, as `find_tissue` gives it.
        mask: An image that is > 0 where to work.
        progress: Told (tiles done, tiles in all), those left out among them.

    Returns:
        "tiles", "tiles_skipped", "level" and "mpp" of the tiles as the model sees them.

    Raises:
        ValueError: See `cut`; a tile or channels that do not fit the model; or a slide without any tile to embed.
    """
    check_tile(model, options.tile)
    check_channels(model, reader.channels)
    if options.pool != "mean" and not model.has_class_token:
        raise ValueError(f"expected --pool mean for {model.name}, which has no class token, got {options.pool}")
    placed = cut(reader, options)
    limits = model_range(model.predictor, reader, placed.level)
    source = TileSource(reader, placed.level, Skip(mask, options.min_foreground), missing=math.nan)
    grid = _grid(source.size, placed)
    wanted = grid if tissue is None else [
        tile for tile in grid if _share(tissue, tile, source.size) >= max(options.min_foreground, 1e-9)
    ]  # fmt: skip
    width = model.channels * (2 if options.pool == "class+mean" else 1)
    attributes = {**_attributes(reader, placed, name, options), "pool": options.pool, "weights": model.weights}
    down, across = placed.downsample
    with BagWriter(path, width, model.name, attributes) as bag:
        left_out = len(grid) - len(wanted)
        for count, batch in _batches(source, wanted, options.batch_size):
            if batch:
                planes = torch.from_numpy(np.stack([pixels for _, pixels in batch])).to(model.predictor.device)
                inputs = as_input(model, planes, limits)
                if placed.side != options.tile:
                    inputs = functional.interpolate(
                        inputs, (options.tile, options.tile), mode="bilinear", antialias=True
                    )
                found = pooled(model.tokens(inputs, options.precision), options.pool)
                coords = [[round(tile.x.start * across), round(tile.y.start * down)] for tile, _ in batch]
                bag.add(found, np.array(coords, np.int64))
            progress(left_out + count, len(grid))
        tiles = len(bag)
    if not tiles:
        raise ValueError(f"no tile of {reader.name!r} holds enough to embed; lower --min-foreground, or check its mask")
    return {
        "tiles": tiles,
        "tiles_skipped": len(grid) - tiles,
        "level": placed.level,
        "mpp": attributes.get("target_mpp"),
    }


def pooled(tokens: Tokens, pool: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(B, C) of a batch's tokens, or (B, 2 C) for "class+mean"; see `POOLS`.

    Raises:
        ValueError: A class token is asked for that the model does not have.
    """
    mean = tokens.patches.mean(dim=(1, 2))
    if pool == "mean":
        return mean.cpu().numpy()
    if tokens.class_token is None:
        raise ValueError(f"expected pool 'mean' for a model without a class token, got {pool!r}")
    parts = [tokens.class_token] if pool == "class" else [tokens.class_token, mean]
    return torch.cat(parts, dim=1).cpu().numpy()


def _grid(size: tuple[int, int], placed: Cut) -> list[Tile]:
    rows, cols = (range(0, length - placed.side + 1, placed.step) for length in size)
    spans = {start: Span(start, start + placed.side, start, start + placed.side, start + placed.side)
             for start in {*rows, *cols}}  # fmt: skip
    return [Tile(row, col, spans[y], spans[x]) for row, y in enumerate(rows) for col, x in enumerate(cols)]


def _share(mask: Mask, tile: Tile, size: tuple[int, int]) -> float:
    """Share of a tile that a mask of any size over the whole image covers."""
    spans = zip((tile.y, tile.x), mask.shape, size, strict=True)
    low_high = [(span.start * here // full, -(-span.stop * here // full)) for span, here, full in spans]
    (top, bottom), (left, right) = low_high
    return float(mask[top:bottom, left:right].mean())


def _batches(source: TileSource, tiles: list[Tile], size: int) -> Iterator[tuple[int, list[tuple[Tile, Any]]]]:
    """(tiles done, those of them to embed); read in another thread while the model works, one batch ahead."""
    with ThreadPoolExecutor(1) as pool:
        reading: deque[Any] = deque()
        waiting = iter(tiles)
        batch: list[tuple[Tile, Any]] = []
        done = 0
        while True:
            for tile in waiting:
                reading.append((tile, pool.submit(source.read, tile)))
                if len(reading) > size:
                    break
            if not reading:
                break
            tile, future = reading.popleft()
            pixels, done = future.result().pixels, done + 1
            if pixels is not None:
                batch.append((tile, pixels))
            if len(batch) == size:
                yield done, batch
                batch = []
    yield done, batch


def _attributes(reader: ImageReader, placed: Cut, name: str, options: TileOptions) -> dict[str, Any]:
    """Of ``coords``: TRIDENT's names, CLAM's level and downsample, and the scale in microns where it is known."""
    across = placed.downsample[1]
    found: dict[str, Any] = {
        "name": name,
        "patch_size": options.tile,
        "patch_size_level0": round(placed.side * across),
        "patch_level": placed.level,
        "downsample": float(across),
        "overlap": options.overlap,
        "level0_height": reader.height,
        "level0_width": reader.width,
    }
    if reader.mpp is not None:
        target = reader.mpp * across * placed.side / options.tile
        found |= {"level0_mpp": float(reader.mpp), "target_mpp": float(options.mpp or target)}
        if reader.mpp_unit == "microns":
            found |= {
                "level0_magnification": max(1, round(OBJECTIVE / reader.mpp)),
                "target_magnification": max(1, round(OBJECTIVE / found["target_mpp"])),
            }
    return found
