"""How ``castvision predict`` and ``castvision evaluate`` run a model: options, defaults by the model, the scale."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from castvision.data import ImageReader
    from castvision.inference.predictor import Predictor

_FARTHEST = 2.0
FAILURES = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)
"""What one image may end with while the others go on; RuntimeError includes torch's out of memory."""


@dataclass(frozen=True)
class Options:
    """How images are predicted; see ``castvision predict --help``."""

    tiles: dict[str, Any]
    mpp: float | None = None
    min_foreground: float = 0.0
    blank: float | None = None
    overlay: bool = True
    geojson: bool = False
    min_area: int = 1
    simplify: float = 0.0
    probabilities: bool = False
    top: int = 5
    resume: bool = False

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace, predictor: Predictor) -> Options:
        """Read the command line.

        Raises:
            ValueError: An untrained model, or tiles it does not take.
        """
        if not predictor.is_trained:
            raise ValueError(f"{predictor.parts.name} is untrained: its predictions mean nothing; give a checkpoint")
        same = {field.name for field in dataclasses.fields(cls)} - {"tiles", "blank"}
        chosen = {name: getattr(arguments, name) for name in same}
        return cls(tiles=tile_options(arguments, predictor), blank=arguments.skip_blank, **chosen)


def tile_options(arguments: argparse.Namespace, predictor: Predictor) -> dict[str, Any]:
    """Keywords for `tiled_inference`, with the model's defaults.

    Raises:
        ValueError: A tile the model does not take.
    """
    parts = predictor.parts
    tile = parts.fixed_size or parts.input.img_size if arguments.tile is None else (arguments.tile, arguments.tile)
    if parts.fixed_size is not None and tile != parts.fixed_size:
        raise ValueError(f"expected --tile {parts.fixed_size[0]}: {parts.name} takes no other size, got {tile[0]}")
    if any(side % step for side, step in zip(tile, parts.patch_size, strict=True)):
        raise ValueError(
            f"expected --tile a multiple of {parts.patch_size[0]} (the patch of {parts.name}), got {tile[0]}"
        )
    overlap = min(tile) // 8 if arguments.overlap is None else arguments.overlap
    same = {name: getattr(arguments, name) for name in ("halo", "batch_size", "precision", "tta")}
    return {"tile": tile, "overlap": overlap, "context_size": parts.context_size, "mask_nodata": True, **same}


def choose_level(reader: ImageReader, mpp: float | None) -> int:
    """The pyramid's level nearest to a scale.

    Args:
        reader: The image.
        mpp: Microns or ground units per pixel; None = full size.

    Returns:
        Place in ``reader.levels``.

    Raises:
        ValueError: The image states no scale, or no level is within a factor of 2.
    """
    if mpp is None:
        return 0
    if reader.mpp is None:
        raise ValueError(f"{reader.name!r} does not state how large its pixels are; leave out --mpp for it")
    sizes = [reader.mpp * level.downsample for level in reader.levels]
    away = [abs(math.log(size / mpp)) for size in sizes]
    best = min(range(len(sizes)), key=away.__getitem__)
    if away[best] > math.log(_FARTHEST) + 1e-6:
        found = ", ".join(f"{size:g}" for size in sizes)
        raise ValueError(f"no level of {reader.name!r} is near --mpp {mpp:g}: it has {found}; resample the image")
    return best
