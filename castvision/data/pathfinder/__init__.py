"""Pathfinder: do two dots mark the ends of one path? A compiled, endless, exactly labelled generator.

The geometry follows the public generator of Linsley, Kim and Serre (https://github.com/drewlinsley/pathfinder) with
Long Range Arena's parameters; the code is our own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castvision.data.pathfinder.spec import Mode, PathfinderSpec

if TYPE_CHECKING:
    from castvision.data.pathfinder.dataset import PathfinderDataset as PathfinderDataset
    from castvision.data.pathfinder.sample import PathfinderSample as PathfinderSample
    from castvision.data.pathfinder.sample import make_pathfinder as make_pathfinder

__all__ = ["Mode", "PathfinderDataset", "PathfinderSample", "PathfinderSpec", "make_pathfinder"]

_HOMES = {"PathfinderDataset": "dataset", "PathfinderSample": "sample", "make_pathfinder": "sample"}


def __getattr__(name: str) -> Any:
    """Import what needs numba when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
