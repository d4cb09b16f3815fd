"""Using a model: predictions of images of any size, pictures of its clusters, the demo.

`tiled_inference` and what belongs to it can be imported from here; the rest from the modules:
`castvision.inference.predictor` (`load_model`, `Predictor`), `castvision.visualization.pictures` (overlays as arrays),
`castvision.visualization.plots` (plots; needs matplotlib).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from castvision.deferred import deferred

if TYPE_CHECKING:
    from castvision.inference.sinks import FileSink, Sink
    from castvision.inference.tile_source import Skip
    from castvision.inference.tiled import Seam, TiledResult, tiled_inference

__all__ = [
    "FileSink",
    "Seam",
    "Sink",
    "Skip",
    "TiledResult",
    "tiled_inference",
]

__getattr__ = deferred(
    __name__,
    {
        "FileSink": "castvision.inference.sinks",
        "Seam": "castvision.inference.tiled",
        "Sink": "castvision.inference.sinks",
        "Skip": "castvision.inference.tile_source",
        "TiledResult": "castvision.inference.tiled",
        "tiled_inference": "castvision.inference.tiled",
    },
)
