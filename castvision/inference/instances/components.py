"""Connected components of a label map of any size: bands of rows are labelled one by one, then joined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.inference.instances.bands import bands_of, runs_of

if TYPE_CHECKING:
    from collections.abc import Collection

    from castvision.inference.sinks import FileSink

Array = np.ndarray[Any, np.dtype[Any]]
MOST = 20_000_000
"""Components before small ones are left out, of which lists are held in memory."""


class Forest:
    """Numbers 0, 1, 2, … that turn out to mean the same (union-find); the smallest of a set stands for it."""

    def __init__(self) -> None:
        self._parent: dict[int, int] = {}

    def root(self, number: int) -> int:
        """The number that stands for the set."""
        parent = self._parent
        while (above := parent.get(number, number)) != number:
            parent[number] = parent.get(above, above)
            number = above
        return number

    def join(self, one: int, other: int) -> None:
        """Both mean the same."""
        low, high = sorted((self.root(one), self.root(other)))
        if low != high:
            self._parent[high] = low

    def roots(self, count: int) -> Array:
        """(count,) int64: for each number below ``count`` the one that stands for it."""
        found = np.arange(count)
        for number in self._parent:
            found[number] = self.root(number)
        return found


def write_components(labels: FileSink, ids: FileSink, things: Collection[int]) -> tuple[Array, Array]:
    """Number the components of the classes that have objects.

    Pixels of one class that share an edge are one component; two areas that touch at a corner are two, as they are two
    polygons. What is no class (no data, ignored) is in none.

    Args:
        labels: (height, width) classes.
        ids: Takes (height, width) uint32: 0 = no object, else a number; parts of one component, found in different
            bands, have different ones.
        things: Classes with objects.

    Returns:
        (numbers + 1,) int64: for each number the one that stands for its component, 0 for 0; and its class, -1 for 0.

    Raises:
        ValueError: More than `MOST` components.
    """
    import cv2

    height, width = labels.shape[:2]
    ids.allocate((height, width), np.dtype(np.uint32), 0)
    forest, classes, count = Forest(), [np.array([-1])], 0
    last_labels = last_ids = np.zeros(width, np.int64)
    for y, band in bands_of(labels):
        found = np.zeros(band.shape, np.int64)
        for label in sorted({*np.unique(band).tolist()} & {*things}):
            number, parts = cv2.connectedComponents((band == label).astype(np.uint8), connectivity=4)
            found += np.where(parts > 0, parts + count, 0)
            classes.append(np.full(number - 1, label))
            count += number - 1
        if count > MOST:
            raise ValueError(
                f"the label map has more than {MOST:,} components of classes with objects, too ragged for objects; "
                "leave out --instances, or name the classes that have objects with --things"
            )
        if y:
            meets = (band[0] == last_labels) & (found[0] > 0) & (last_ids > 0)
            for above, below in np.unique(np.stack([last_ids[meets], found[0][meets]]), axis=1).T.tolist():
                forest.join(above, below)
        last_labels, last_ids = band[-1], found[-1]
        ids.write(y, 0, found.astype(np.uint32))
    return forest.roots(count + 1), np.concatenate(classes)


def renumber(ids: FileSink, stands_for: Array, min_area: int) -> Array:
    """Number the objects 1, 2, 3, … by their first pixel, row by row, so that bands and tiles leave no trace.

    Args:
        ids: (height, width) uint32, changed in place.
        stands_for: For each number in ``ids`` the one that stands for its object.
        min_area: Smaller objects become 0. In pixels.

    Returns:
        (objects + 1,) int64: which number each had; the first is 0.
    """
    pixels = np.zeros(len(stands_for), np.int64)
    order: list[Array] = []
    for _, band in bands_of(ids):
        number, _, start, stop = runs_of(np.pad(stands_for[band], ((0, 0), (1, 1))))
        met, first = np.unique(number, return_index=True)
        is_new = pixels[met] == 0
        order.append(met[is_new][np.argsort(first[is_new])])
        pixels += np.bincount(number, stop - start, minlength=len(pixels)).astype(np.int64)
    kept = np.concatenate([np.zeros(1, np.int64), *order])
    large: Array = kept[(pixels[kept] >= min_area) | (kept == 0)]
    number_of = np.zeros(len(stands_for), np.uint32)
    number_of[large] = np.arange(len(large))
    to_number = number_of[stands_for]
    for y, band in bands_of(ids):
        ids.write(y, 0, to_number[band])
    return large
