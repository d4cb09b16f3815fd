"""Objects from centres and offsets, as Panoptic-DeepLab groups them (Cheng et al., 2020, arXiv 1911.10194).

Centres are the maxima of a heat map. A pixel votes for the place it lies at plus its offset, and belongs to the centre
nearest to that place (their equation 1); the class of an object is the one that most of its pixels have. Two things are
different for images of any size: all centres above the threshold are taken, not the best 200, and a pixel that votes
for a place far from every centre is in no object, since the nearest centre may be kilometres away.

Maxima are found with a margin around each band, and all centres of the image are known before the first pixel is
grouped: the result is that of the whole map at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.inference.instances.bands import bands_of

if TYPE_CHECKING:
    from castvision.inference.sinks import FileSink

Array = np.ndarray[Any, np.dtype[Any]]
FIELDS = 3
"""Channels beside the classes: heat of centres, and (dy, dx) from a pixel to its object's centre, in pixels."""


@dataclass(frozen=True)
class Grouping:
    """How centres are found and pixels grouped.

    Attributes:
        threshold: Smallest heat of a centre; the paper's.
        kernel: Side of the square in which a centre must be the maximum, odd, in pixels; the paper's.
        reach: How far from a centre a pixel's vote may lie, in pixels.
    """

    threshold: float = 0.1
    kernel: int = 7
    reach: float = 32.0

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0 or not self.reach > 0:
            raise ValueError(f"expected an odd kernel >= 1 and reach > 0, got {self}")


def find_centres(fields: FileSink, how: Grouping) -> tuple[Array, Array]:
    """The maxima of the heat map.

    Args:
        fields: (height, width, 3) float32, see `FIELDS`; NaN where there is no data, which is never a centre.
        how: See `Grouping`.

    Returns:
        (centres, 2) int64, row and column, in the order of rows; (centres,) their heat. Of equal neighbours in a kernel
        all are centres, as in the paper.
    """
    import cv2

    height, width = fields.shape[:2]
    margin = how.kernel // 2
    square = np.ones((how.kernel, how.kernel), np.uint8)
    places, heats = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    for y, band in bands_of(fields):
        top, bottom = max(0, y - margin), min(height, y + len(band) + margin)
        heat = fields.read(top, 0, bottom - top, width)[..., 0]
        heat = np.where(np.isnan(heat), -np.inf, heat).astype(np.float32)
        highest = cv2.dilate(heat, square, borderType=cv2.BORDER_CONSTANT, borderValue=-np.inf)
        is_centre = (heat == highest) & (heat > how.threshold)
        own = is_centre[y - top : y - top + len(band)]
        rows, columns = np.nonzero(own)
        places.append(np.stack([rows + y, columns], axis=1))
        heats.append(heat[y - top : y - top + len(band)][own])
    return np.concatenate(places), np.concatenate(heats)


def write_groups(
    labels: FileSink, fields: FileSink, ids: FileSink, things: Array, how: Grouping
) -> tuple[Array, Array]:
    """Group the pixels of classes that have objects.

    Args:
        labels: (height, width) classes.
        fields: See `find_centres`.
        ids: Takes (height, width) uint32: 1 + the number of the centre, 0 = no object.
        things: Classes with objects.
        how: See `Grouping`.

    Returns:
        Places and heats of the centres, see `find_centres`.
    """
    from scipy.spatial import KDTree

    places, heats = find_centres(fields, how)
    tree = KDTree(places) if len(places) else None
    ids.allocate((labels.shape[0], labels.shape[1]), np.dtype(np.uint32), 0)
    for y, band in bands_of(labels):
        rows, columns = np.nonzero(np.isin(band, things))
        if tree is None:
            break
        offsets = fields.read(y, 0, len(band), fields.shape[1])[rows, columns, 1:].astype(np.float64)
        votes = np.stack([rows + y, columns], axis=1) + offsets
        _, nearest = tree.query(votes, distance_upper_bound=how.reach)
        found = np.zeros(band.shape, np.uint32)
        is_reached = nearest < len(places)
        found[rows[is_reached], columns[is_reached]] = nearest[is_reached] + 1
        ids.write(y, 0, found)
    return places, heats
