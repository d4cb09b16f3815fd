"""Margins filled with zeros: what a scanner or a reprojection never measured, and the file does not say so."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from castvision.data.datasets.sources import ImageSources

logger = logging.getLogger(__name__)

_SHARE = 0.05
"""Of the pixels along a border, from which on zeros are taken for a margin."""
_MOST = 64
"""Images that are looked at."""


def warn_of_margins(sources: ImageSources) -> None:
    """Say which images have zeros along their borders and do not state them as nodata."""
    found: list[tuple[float, str]] = []
    for number in range(0, len(sources), max(len(sources) // _MOST, 1)):
        share = _zeros_along_border(sources, number)
        if share >= _SHARE:
            found.append((share, str(sources.images[number])))
    if found:
        share, name = max(found)
        logger.warning(
            "a share of %.2f of the pixels is exactly zero along the borders of %r (%d such image(s)); if nothing "
            "was measured there, declare nodata, or it is learned as ground: gdal_edit.py -a_nodata 0 FILE",
            share, name, len(found),
        )  # fmt: skip


def _zeros_along_border(sources: ImageSources, number: int) -> float:
    """Share of the pixels in the first and last row and column that are measured, and 0 in every channel."""
    height, width = sources.sizes[number]
    edges = ((0, 0, 1, width), (height - 1, 0, 1, width), (0, 0, height, 1), (0, width - 1, height, 1))
    windows = [sources.read_image(number, *edge) for edge in edges]
    is_zero = [np.ma.filled(pixels == 0, False).all(axis=-1).ravel() for pixels in windows]
    return float(np.concatenate(is_zero).mean())
