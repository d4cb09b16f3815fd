"""Generators of a run's data, made once before Lightning is imported: which numbers they refuse."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from castvision_cli.early.data import PACKAGE, called, data_of
from castvision_cli.early.light import without_models

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def check_generated(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse numbers that a generator refuses.

    Args:
        words: The command line.
        contents: Of the configurations.

    Raises:
        ValueError: As the generator says it.
    """
    name, given = data_of(words, contents)
    make = _MAKES.get(name.removeprefix(f"{PACKAGE}."))
    if make is None or "lightning" in sys.modules:
        return
    with without_models():
        try:
            make(given)
        except TypeError:
            return  # an argument of another type: jsonargparse says so


def _pathfinder(given: Mapping[str, Any]) -> None:
    from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec
    from castvision.data.synthetic.pathfinder.engine import check_room

    lengths = [*(given.get("curriculum") or ()), given.get("contour_length")]
    for length in lengths:
        spec = called(PathfinderSpec.lra, {"img_size": 32, **given, "contour_length": length})
        check_room(spec)
        called(PathfinderDataset, given, spec=spec, split="val", length=1)


def _pathfinder_seg(given: Mapping[str, Any]) -> None:
    from castvision.data.synthetic import PathfinderSegDataset
    from castvision.data.synthetic.pathfinder.engine import check_room
    from castvision.data.synthetic.pathfinder.spec import segmentation_spec

    img_size = given.get("img_size") or 512
    spec = segmentation_spec(img_size, given.get("contour_length"))
    check_room(spec)
    called(PathfinderSegDataset, {**given, "img_size": img_size}, spec=spec, split="val", length=1)


def _dense(cls: str) -> Callable[[Mapping[str, Any]], None]:
    def make(given: Mapping[str, Any]) -> None:
        from castvision.data import synthetic

        called(getattr(synthetic, cls), given, split="val", length=1)

    return make


_MAKES: Mapping[str, Callable[[Mapping[str, Any]], None]] = {
    "CopyMoveDataModule": _dense("CopyMoveDataset"),
    "MazeDataModule": _dense("MazeDataset"),
    "PathfinderDataModule": _pathfinder,
    "PathfinderSegDataModule": _pathfinder_seg,
    "RegionDataModule": _dense("RegionDataset"),
}
"""By the data module that a configuration names."""
