"""Dense tasks made while training, endless and exact: mark the path, the way through a maze, the region under a dot.

Each asks for information from all over the image: what a pixel is depends on a dot that may lie an image's width away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from castvision.data.dense.dataset import DenseBatch as DenseBatch
    from castvision.data.dense.dataset import DenseDataset as DenseDataset
    from castvision.data.dense.maze import MazeDataset as MazeDataset
    from castvision.data.dense.pathfinder import PathfinderSegDataset as PathfinderSegDataset
    from castvision.data.dense.region import RegionDataset as RegionDataset

__all__ = ["DenseBatch", "DenseDataset", "MazeDataset", "PathfinderSegDataset", "RegionDataset"]

_HOMES = {
    "DenseBatch": "dataset",
    "DenseDataset": "dataset",
    "MazeDataset": "maze",
    "PathfinderSegDataset": "pathfinder",
    "RegionDataset": "region",
}


def __getattr__(name: str) -> Any:
    """Import what needs numba when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
