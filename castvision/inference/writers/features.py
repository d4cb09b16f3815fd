"""Dense features as files: .npy, a zarr array, or a GeoTIFF of as many bands as there are channels."""

from __future__ import annotations

import importlib.util
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.inference.writers.raster import write_tiff

if TYPE_CHECKING:
    from pathlib import Path

    from castvision.data import Georeference
    from castvision.inference.sinks import FileSink

SUFFIXES = {"npy": ".npy", "zarr": ".zarr", "tif": ".tif"}
"""Of each format."""
_CHUNK = 256


def check_format(name: str) -> None:
    """Refuse a format whose library is not installed, before any work.

    Raises:
        ImportError: With the command that installs it.
    """
    if name == "zarr" and importlib.util.find_spec("zarr") is None:
        raise ImportError("writing zarr needs zarr: pip install 'castvision[large-images]', or --format npy")


def write_features(
    path: Path,
    sink: FileSink,
    kind: str,
    *,
    georeference: Georeference | None = None,
    mpp: tuple[float, float] | None = None,
    facts: dict[str, Any],
) -> None:
    """Write (rows, cols, C), one vector a token, NaN where there is none.

    Args:
        path: Of the new file, or folder for zarr.
        sink: Where they are.
        kind: "npy", "zarr" or "tif".
        georeference: Of the tokens, into the GeoTIFF.
        mpp: Microns a token, across and down, into a TIFF without georeference.
        facts: Plain values, attributes of the zarr array.
    """
    if kind == "tif":
        write_tiff(path, sink, nodata=float("nan"), georeference=georeference, mpp=mpp)
    elif kind == "zarr":
        _write_zarr(path, sink, facts)
    else:
        with path.open("wb") as file, sink.path.open("rb") as source:
            header = {"descr": sink.dtype.str, "fortran_order": False, "shape": sink.shape}
            np.lib.format.write_array_header_1_0(file, header)
            shutil.copyfileobj(source, file, 1 << 24)


def _write_zarr(path: Path, sink: FileSink, facts: dict[str, Any]) -> None:
    import zarr

    rows, cols, channels = sink.shape
    array = zarr.create_array(
        str(path),
        shape=sink.shape,
        dtype=sink.dtype,
        chunks=(min(rows, _CHUNK), min(cols, _CHUNK), channels),
        fill_value=float("nan"),
        dimension_names=("y", "x", "channel"),
        attributes=facts,
    )
    for y in range(0, rows, _CHUNK):
        array[y : y + _CHUNK] = sink.read(y, 0, _CHUNK, cols)
