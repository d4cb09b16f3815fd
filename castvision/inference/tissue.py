"""Where a slide holds tissue: what is coloured, against the grey and white of glass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.pixels import is_empty, to_picture
from castvision.inference.writers.preview import read_reduced

if TYPE_CHECKING:
    from castvision.data import ImageReader
    from castvision.data.reading.pixels import Pixels

Mask = np.ndarray[Any, np.dtype[np.bool_]]
_THUMBNAIL = 2048
_LEAST = 15
"""Of 255: a saturation that scanners' noise and glass do not reach, whatever the threshold found."""
_DARKEST = 20
"""Of 255: what is darker is no tissue but the edge of the scan, whose noise is saturated."""


def find_tissue(reader: ImageReader) -> Mask:
    """The tissue of a slide, on a thumbnail of at most 2,048 pixels a side.

    Args:
        reader: RGB.

    Returns:
        (height, width) bool over the whole image.

    Raises:
        ValueError: An image without colours, or without tissue.
    """
    if reader.channels != 3:
        raise ValueError(
            f"expected an RGB slide to find tissue in, got {reader.channels} channel(s) in {reader.name!r}; give a "
            "mask by --mask, or leave out --tissue"
        )
    mask = tissue_mask(read_reduced(reader, _THUMBNAIL))
    if not mask.any():
        raise ValueError(
            f"found no tissue in {reader.name!r}: nothing is coloured; give a mask by --mask, or leave out --tissue"
        )
    return mask


def tissue_mask(picture: Pixels) -> Mask:
    """Pixels more saturated than Otsu's threshold, smoothed.

    A picture of nothing but tissue is split by that threshold too: leave it without a mask.

    Args:
        picture: (height, width, 3), any numeric dtype, masked where values are missing.

    Returns:
        (height, width) bool; False where there is no data.
    """
    import cv2

    known = ~is_empty(picture)
    values = np.ma.getdata(picture)  # of 8 bits as they are: a dark slide is not made brighter
    colours = np.ascontiguousarray(values if values.dtype == np.uint8 else to_picture(picture))
    saturation = cv2.medianBlur(cv2.cvtColor(colours, cv2.COLOR_RGB2HSV)[..., 1], 7)
    if not known.any():
        return known
    threshold, _ = cv2.threshold(saturation[known][:, None], 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    is_lit = colours.max(axis=-1) > _DARKEST
    found = ((saturation > max(threshold, _LEAST)) & is_lit & known).astype(np.uint8)
    closed = cv2.morphologyEx(found, cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    mask: Mask = (closed > 0) & known
    return mask
