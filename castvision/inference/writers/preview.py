"""A picture of an image of any size with its labels laid over it, small enough to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from castvision.data.reading.pixels import holds_data, mark_missing
from castvision.visualization.legend import class_entries, with_legend
from castvision.visualization.pictures import RGB, Labels, background_class, display_picture, overlay_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data import ImageReader
    from castvision.data.reading.pixels import Mask, Pixels
    from castvision.inference.sinks import FileSink

_BAND_BYTES = 1 << 25


def read_reduced(reader: ImageReader, max_side: int) -> Pixels:
    """A whole image, averaged over square blocks, read from the coarsest level that is large enough, band by band.

    Args:
        reader: The image.
        max_side: Of the longer side of the result.

    Returns:
        (height, width, channels) in the file's dtype, a masked array where values are missing, which enter no average;
        smaller images unchanged.
    """
    enough = [index for index, level in enumerate(reader.levels) if max(level.height, level.width) >= max_side]
    index = enough[-1] if enough else 0
    level = reader.levels[index]
    factor = max(1, -(-max(level.height, level.width) // max_side))
    if factor == 1:
        whole: Pixels = reader.read_masked(0, 0, level.height, level.width, index)
        return whole
    height, width = max(1, level.height // factor), max(1, level.width // factor)
    row_bytes = factor * level.width * reader.channels * 8
    rows = max(1, _BAND_BYTES // row_bytes)
    bands = []
    for y in range(0, height, rows):
        count = min(rows, height - y)
        deep, wide = min(count * factor, level.height), min(width * factor, level.width)
        band = reader.read_masked(y * factor, 0, deep, wide, index)
        bands.append(_block_means(band, count, width))
    known = np.concatenate([is_known for _, is_known in bands])
    return mark_missing(np.concatenate([means for means, _ in bands]), known)


def _block_means(band: Pixels, height: int, width: int) -> tuple[Pixels, Mask]:
    """Means of the values that hold data, and where there are any."""
    shape = height, band.shape[0] // height, width, band.shape[1] // width, band.shape[2]
    known = holds_data(band)
    values = np.ma.getdata(band)
    if known.all():
        means: Pixels = values.reshape(shape).mean(axis=(1, 3), dtype=np.float64)
    else:
        sums = np.where(known, values, 0).reshape(shape).sum(axis=(1, 3), dtype=np.float64)
        means = sums / np.maximum(known.reshape(shape).sum(axis=(1, 3)), 1)
    is_any: Mask = np.any(known.reshape(shape), axis=(1, 3))
    return np.asarray(np.rint(means) if band.dtype.kind in "ui" else means, band.dtype), is_any


def overlay_preview(
    reader: ImageReader, sink: FileSink, *, nodata: int, names: Sequence[str], max_side: int = 2048
) -> RGB:
    """The image with each class tinted but a background, nodata darkened, and a legend beside it.

    Args:
        reader: The image.
        sink: (height, width) labels of any of its levels.
        nodata: Label of pixels without a class.
        names: One for each class.
        max_side: Of the picture's longer side.

    Returns:
        (height', width', 3) uint8; the picture in the upper left corner.
    """
    picture = display_picture(read_reduced(reader, max_side), max_side=max_side)
    height, width = sink.shape[:2]
    step = max(1, max(height, width) // max(picture.shape[:2]))
    labels: Labels = sink.read(0, 0, height, width, step).astype(np.int64)
    labels[labels == nodata] = -1
    untinted = background_class(names)
    entries = class_entries(np.unique(labels).tolist(), names, untinted, "no data")
    return with_legend(overlay_mask(picture, labels, untinted=untinted), entries)
