"""Embeddings of a slide's tiles in HDF5, laid out as CLAM and TRIDENT read and write them (extra ``slides``).

``features`` (N, C) float32 and ``coords`` (N, 2) int64, the (x, y) of each tile's upper left corner in pixels of level
0; sizes and scale are attributes of ``coords``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import os

    Features = np.ndarray[Any, np.dtype[np.float32]]
    Coords = np.ndarray[Any, np.dtype[np.int64]]

BAG_SUFFIXES = frozenset({".h5", ".hdf5"})
OBJECTIVE = 10.0
"""Microns a pixel of an objective of 1×, as scanners are named: 0.25 is 40×."""
_CHUNK = 256


@dataclass(frozen=True)
class Bag:
    """The tiles of a slide.

    Attributes:
        path: The file.
        features: (N, C) float32.
        coords: (N, 2) int64, x and y in pixels of level 0; None where the file has none.
        attributes: Of ``coords``, such as "patch_size_level0" and "pool", and the "encoder" of ``features``.
    """

    path: Path
    features: Features = field(repr=False)
    coords: Coords | None = field(repr=False)
    attributes: Mapping[str, Any]

    @property
    def tile_side(self) -> int | None:
        """Of a tile, in pixels of level 0: as the file states it, or the smallest step between tiles."""
        stated = self.attributes.get("patch_size_level0")
        if stated is not None:
            return int(stated)
        step = None if self.coords is None else _smallest_step(self.coords)
        return None if step is None else round(step)

    @property
    def tile_step(self) -> float | None:
        """From one tile to the next, in pixels of level 0, likewise; between tissue there may be gaps of several."""
        side, size, shared = (self.attributes.get(name) for name in ("patch_size_level0", "patch_size", "overlap"))
        if side is None or not size or shared is None or shared >= size:
            return None if self.coords is None else _smallest_step(self.coords)
        step, pixel = float(side) * (1 - float(shared) / float(size)), self.attributes.get("downsample")
        if isinstance(pixel, int | float | np.number) and pixel > 0:  # the side was rounded: there may be hundreds
            step = max(1, round(step / float(pixel))) * float(pixel)
        return step


def _smallest_step(coords: Coords) -> float | None:
    """Between neighbours in a row or column, the mean of those that differ by rounding; None of a single tile."""
    steps = []
    for across, along in ((0, 1), (1, 0)):
        ordered = coords[np.lexsort((coords[:, across], coords[:, along]))]
        is_same = np.diff(ordered[:, along]) == 0
        steps.append(np.diff(ordered[:, across])[is_same])
    found = np.concatenate(steps)
    if not found.any():  # no two in a row
        found = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    found = found[found > 0]
    return float(found[found < 1.5 * found.min()].mean()) if found.size else None


def h5py_module() -> Any:
    """h5py, imported when it is needed.

    Raises:
        ImportError: It is not installed; with the command that installs it.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError("embeddings of slides need h5py: pip install 'castvision[slides]'") from error
    return h5py


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = h5py_module()
    if not path.is_file():
        raise FileNotFoundError(f"no such file of embeddings: {str(path)!r}; check the path")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(
            f"cannot read {str(path)!r}: damaged, or no HDF5; write it again by castvision embed --write tiles"
        ) from error
    with file:
        if "features" not in file:
            raise ValueError(
                f"expected a data set 'features' (tiles, channels) in {str(path)!r}, found {sorted(file) or 'nothing'}"
            )
        yield file


def bag_facts(path: str | os.PathLike[str]) -> tuple[tuple[int, int], dict[str, Any]]:
    """(tiles, channels) of a file and its attributes, see `Bag`; its features are not read.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, or laid out otherwise; the file is named.
        ImportError: Without h5py.
    """
    with _opened(Path(path)) as file:
        return _shape(file["features"].shape, path), _attributes(file)


def _shape(shape: tuple[int, ...], path: str | os.PathLike[str]) -> tuple[int, int]:
    if len(shape) == 3 and shape[0] == 1:  # as some tools write it
        shape = shape[1:]
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"expected features (tiles, channels) in {str(path)!r}, got shape {shape}")
    return int(shape[0]), int(shape[1])


def _attributes(file: Any) -> dict[str, Any]:
    found = dict(file["coords"].attrs) if "coords" in file else {}
    encoder = file["features"].attrs.get("encoder")
    found |= {} if encoder is None else {"encoder": encoder}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def read_bag(path: str | os.PathLike[str], tiles: np.ndarray[Any, np.dtype[np.int64]] | None = None) -> Bag:
    """Read a slide's embeddings, written by ``castvision embed``, CLAM or TRIDENT.

    Args:
        path: The file.
        tiles: Numbers of the tiles to read, ascending; None = all.

    Returns:
        Its tiles.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Damaged, laid out otherwise, or features that are not finite; the file is named.
        ImportError: Without h5py.
    """
    path = Path(path)
    with _opened(path) as file:
        number, channels = _shape(file["features"].shape, path)
        features = np.asarray(file["features"][()], np.float32).reshape(number, channels)
        coords = np.asarray(file["coords"][()], np.int64).reshape(-1, 2) if "coords" in file else None
        attributes = _attributes(file)
    if coords is not None and len(coords) != number:
        raise ValueError(f"expected as many coords as features in {str(path)!r}, got {len(coords)} for {number}")
    if tiles is not None:
        features, coords = features[tiles], None if coords is None else coords[tiles]
    if not np.isfinite(features).all():
        raise ValueError(f"expected finite features in {str(path)!r}, got NaN or infinity; embed the slide again")
    return Bag(path, features, coords, attributes)


class BagWriter:
    """Writes a slide's tiles batch by batch, so that memory does not grow with the slide.

    Args:
        path: Of the new file.
        channels: Of the features.
        encoder: The model's name.
        attributes: Of ``coords``.
    """

    def __init__(self, path: Path, channels: int, encoder: str, attributes: Mapping[str, Any]) -> None:
        self._file = h5py_module().File(path, "w")
        make = self._file.create_dataset
        self._features = make(
            "features", (0, channels), "float32", maxshape=(None, channels), chunks=(_CHUNK, channels)
        )
        self._coords = make("coords", (0, 2), "int64", maxshape=(None, 2), chunks=(_CHUNK, 2))
        self._features.attrs.update({"encoder": encoder, "name": attributes["name"]})
        self._coords.attrs.update(attributes)

    def add(self, features: Features, coords: Coords) -> None:
        """Append tiles, (n, C) and (n, 2)."""
        for data, values in ((self._features, features), (self._coords, coords)):
            before = len(data)
            data.resize(before + len(values), axis=0)
            data[before:] = values

    def __len__(self) -> int:
        """Tiles so far."""
        return len(self._features)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()
