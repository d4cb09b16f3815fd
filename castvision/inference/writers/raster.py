"""Label maps and probabilities as TIFF and PNG.

The TIFF is laid out like a cloud-optimised GeoTIFF: tiles of 256 pixels, DEFLATE, BigTIFF where needed, and overviews,
each half as large, as reduced-resolution directories after the full image; each pixel of an overview is one of the full
image's (nearest), never a mixture of labels. It differs from the COG profile in one point: a directory stands before
its own pixels, not all directories at the beginning of the file, so that a reader over a network takes one request more
for each overview.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from castvision.data import Georeference
    from castvision.inference.sinks import FileSink

Pixels = np.ndarray[Any, np.dtype[Any]]
TILE = 256
_SMALLEST = 512
_NODATA_TAG = 42113
_CLASSIC_LIMIT = 3_500_000_000


def write_tiff(
    path: Path,
    sink: FileSink,
    *,
    nodata: float | None,
    georeference: Georeference | None = None,
    mpp: float | tuple[float, float] | None = None,
) -> None:
    """Write a pyramid, tile by tile.

    Args:
        path: Of the new file.
        sink: (height, width) or (height, width, channels).
        nodata: Written as GDAL's nodata tag; None = every pixel has a value.
        georeference: Of the image the output belongs to, at the output's resolution.
        mpp: Microns per pixel, of a pair across and down, written as the resolution where there is no georeference.
    """
    height, width = sink.shape[:2]
    channels = sink.shape[2:]
    size = int(np.prod(sink.shape)) * sink.dtype.itemsize * 4 // 3
    text = "" if nodata is None else f"{nodata:g}"
    tags = [(_NODATA_TAG, "s", len(text) + 1, text, True)] if text else []
    with tifffile.TiffWriter(path, bigtiff=size > _CLASSIC_LIMIT) as writer:
        for step in overview_steps(height, width):
            ground = georeference.extratags() if georeference is not None and step == 1 else []
            more: dict[str, Any] = {"extratags": [*tags, *ground]}
            if georeference is None and mpp is not None:
                across, down = mpp if isinstance(mpp, tuple) else (mpp, mpp)
                more |= {"resolution": (1e4 / (across * step), 1e4 / (down * step)), "resolutionunit": "CENTIMETER"}
            writer.write(
                _tiles(sink, step),
                shape=(-(-height // step), -(-width // step), *channels),
                dtype=sink.dtype,
                tile=(TILE, TILE),
                photometric="minisblack",
                planarconfig="contig" if channels else None,
                extrasamples=["unspecified"] * (channels[0] - 1) if channels else None,
                compression="zlib",
                subfiletype=0 if step == 1 else 1,
                metadata=None,
                maxworkers=1,
                **more,
            )


def overview_steps(height: int, width: int) -> list[int]:
    """1 for the full image, then 2, 4, ... until the longer side is at most 512."""
    steps = [1]
    while max(height, width) > steps[-1] * _SMALLEST:
        steps.append(steps[-1] * 2)
    return steps


def _tiles(sink: FileSink, step: int) -> Iterator[Pixels]:
    height, width = sink.shape[:2]
    side = TILE * step
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield sink.read(y, x, side, side, step)


def write_png(path: Path, sink: FileSink) -> None:
    """Write labels, 8 or 16 bits, as a grey PNG whose values are the labels.

    Args:
        path: Of the new file.
        sink: (height, width), read at once.
    """
    Image.fromarray(sink.read(0, 0, *sink.shape[:2])).save(path, "PNG", compress_level=3)
