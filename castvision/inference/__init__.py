"""Using a model: predictions of images of any size, pictures of its clusters, the demo.

`tiled_inference` and what belongs to it can be imported from here; the rest from the modules:
`castvision.inference.predictor` (`load_model`, `Predictor`), `castvision.inference.pictures` (overlays as arrays),
`castvision.inference.figures` (titled figures; needs matplotlib).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castvision.inference.sinks import FileSink as FileSink
    from castvision.inference.sinks import Sink as Sink
    from castvision.inference.tile_source import Skip as Skip
    from castvision.inference.tiled import Seam as Seam
    from castvision.inference.tiled import TiledResult as TiledResult
    from castvision.inference.tiled import tiled_inference as tiled_inference

_HOMES = {
    "FileSink": "sinks",
    "Seam": "tiled",
    "Sink": "sinks",
    "Skip": "tile_source",
    "TiledResult": "tiled",
    "tiled_inference": "tiled",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a part when it is first asked for: `castvision predict --help` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
