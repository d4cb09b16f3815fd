"""A map on disk, read in bands of rows, and the runs of one number in them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castvision.inference.sinks import FileSink

Array = np.ndarray[Any, np.dtype[Any]]
BAND_VALUES = 1 << 22


def bands_of(sink: FileSink) -> Iterator[tuple[int, Array]]:
    """The rows of a map from top to bottom.

    Args:
        sink: (height, width[, channels]).

    Yields:
        The first row's number, and (rows, width[, channels]).
    """
    height, width, *channels = sink.shape
    rows = max(1, BAND_VALUES // math.prod([width, *channels]))
    for y in range(0, height, rows):
        yield y, sink.read(y, 0, rows, width)


def runs_of(padded: Array) -> tuple[Array, Array, Array, Array]:
    """Runs of one number in rows, in the order in which they are read.

    Args:
        padded: (rows, 1 + width + 1) whole numbers >= 0, with a column of zeros on each side.

    Returns:
        Of each run of a number above 0: that number, its row, its first column and the one beyond its last, counted
        without the padding.
    """
    is_new = padded[:, 1:] != padded[:, :-1]
    row, edge = np.nonzero(is_new)
    number = padded[row, edge + 1]
    position = np.flatnonzero(number > 0)
    return number[position], row[position], edge[position], edge[position + 1]
