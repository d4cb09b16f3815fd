"""What is measured of each object of a map of any size: area, box, centre, perimeter, class, score."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.inference.instances.bands import bands_of, runs_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castvision.inference.sinks import FileSink

Array = np.ndarray[Any, np.dtype[Any]]
Transform = tuple[float, float, float, float, float, float]
PIXELS: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Shapes:
    """Sizes and places of objects; entry i is of the object with number i, entry 0 of what is none.

    Coordinates run along the edges of pixels, as those of polygons do: the first pixel reaches from 0 to 1, and its
    centre lies at 0.5.

    Attributes:
        pixels: (objects + 1,) int64.
        boxes: (objects + 1, 4) int64: top, left, bottom, right; rows top to bottom - 1.
        centres: (objects + 1, 2) float64: mean y and x.
        crossings: (objects + 1, 4) int64: how often lines through all pixel centres cross the object's boundary: rows,
            columns, diagonals down to the right, diagonals down to the left.
    """

    pixels: Array
    boxes: Array
    centres: Array
    crossings: Array

    def perimeters(self, transform: Transform = PIXELS) -> Array:
        """Lengths of the boundaries, by the formula of Crofton: half the integral of crossings over lines.

        The lines are those of four directions; the share of a direction is the angle to its neighbours. Of square
        pixels it is what ``skimage.measure.perimeter_crofton`` gives: a little less than the truth for squares along
        the grid (a factor .95), nearly right for round shapes.

        Args:
            transform: From pixels to the units wanted, as `castvision.data.Georeference` has it.

        Returns:
            (objects + 1,) float64.
        """
        a, b, _, d, e, _ = transform
        steps = np.array([[a, d], [b, e], [a + b, d + e], [a - b, d - e]])
        angles = np.arctan2(steps[:, 1], steps[:, 0]) % math.pi
        order = np.argsort(angles)
        following = np.append(angles[order][1:], angles[order][0] + math.pi)
        gaps = following - angles[order]
        weights = np.empty(4)
        weights[order] = (gaps + np.roll(gaps, 1)) / 2
        spacing = abs(a * e - b * d) / np.hypot(steps[:, 0], steps[:, 1])
        lengths: Array = self.crossings @ (weights * spacing) / 2
        return lengths


@dataclass(frozen=True)
class Instances:
    """The objects of one image, numbered 1, 2, 3, … by their first pixel; entry 0 of all lists is of no object.

    Attributes:
        ids: (height, width) uint32: the object of each pixel, 0 = none.
        classes: (objects + 1,) int64.
        shapes: Their sizes and places.
        scores: (objects + 1,) float64, 0..1; None where nothing tells them.
        lost: Pixels of classes with objects that are in none: those of small objects, and without a centre in reach.
    """

    ids: FileSink
    classes: Array
    shapes: Shapes
    scores: Array | None
    lost: int

    def __len__(self) -> int:
        """How many objects there are."""
        return len(self.classes) - 1

    def masks(self) -> Iterator[tuple[int, tuple[int, int], Array]]:
        """One object after the other.

        Yields:
            Its number, the row and column of its box's upper left corner, and (rows, columns) bool.
        """
        for number, (top, left, bottom, right) in enumerate(self.shapes.boxes[1:].tolist(), start=1):
            yield number, (top, left), self.ids.read(top, left, bottom - top, right - left) == number


def measure(ids: FileSink, count: int) -> Shapes:
    """Measure all objects in one pass over a map.

    Args:
        ids: (height, width) numbers of objects, 0 = none.
        count: The largest number.
    """
    pixels, crossings = np.zeros(count + 1, np.int64), np.zeros((count + 1, 4), np.int64)
    sums = np.zeros((2, count + 1))
    low = np.full((2, count + 1), np.iinfo(np.int64).max)
    high = np.zeros((2, count + 1), np.int64)
    width = ids.shape[1]
    last = np.zeros((1, width + 2), np.int64)
    for y, band in bands_of(ids):
        padded = np.pad(band.astype(np.int64), ((0, 0), (1, 1)))
        number, row, start, stop = runs_of(padded)
        rows = row + y
        pixels += np.bincount(number, stop - start, minlength=count + 1).astype(np.int64)
        sums[0] += np.bincount(number, (stop - start) * (rows + 0.5), minlength=count + 1)
        sums[1] += np.bincount(number, (stop - start) * (start + stop) / 2, minlength=count + 1)
        for axis, (first, end) in enumerate(((rows, rows + 1), (start, stop))):
            np.minimum.at(low[axis], number, first)
            np.maximum.at(high[axis], number, end)
        crossings[:, 0] += 2 * np.bincount(number, minlength=count + 1)
        is_last = y + len(band) >= ids.shape[0]
        joined = np.concatenate([last, padded, *([np.zeros_like(last)] if is_last else [])])
        for direction, (above, below) in enumerate(_steps_down(joined), start=1):
            crossings[:, direction] += _changes(above, below, count)
        last = padded[-1:]
    known = np.maximum(pixels, 1)
    boxes = np.stack([low[0], low[1], high[0], high[1]], axis=1)
    return Shapes(pixels, np.where(pixels[:, None] > 0, boxes, 0), (sums / known).T, crossings)


def _steps_down(joined: Array) -> tuple[tuple[Array, Array], ...]:
    """Pairs of pixels of neighbouring rows: below each other, down to the right, down to the left."""
    above, below = joined[:-1], joined[1:]
    return (above, below), (above[:, :-1], below[:, 1:]), (above[:, 1:], below[:, :-1])


def _changes(above: Array, below: Array, count: int) -> Array:
    is_change = above != below
    counted = np.bincount(above[is_change], minlength=count + 1) + np.bincount(below[is_change], minlength=count + 1)
    counted[0] = 0
    return counted


def vote(ids: FileSink, labels: FileSink, count: int, things: Array) -> Array:
    """The class that most pixels of an object have; of equal counts the first.

    Args:
        ids: (height, width) numbers of objects.
        labels: (height, width) classes.
        count: The largest number.
        things: Classes with objects; every pixel of an object has one of them.

    Returns:
        (objects + 1,) int64, -1 for 0.
    """
    votes = np.zeros((count + 1, len(things)), np.int64)
    place = np.zeros(int(np.iinfo(labels.dtype).max) + 1, np.int64)
    place[things] = np.arange(len(things))
    for (_, band), (_, classes) in zip(bands_of(ids), bands_of(labels), strict=True):
        inside = band > 0
        pairs = band[inside].astype(np.int64) * len(things) + place[classes[inside]]
        votes += np.bincount(pairs, minlength=votes.size).reshape(votes.shape)
    chosen: Array = things[votes.argmax(axis=1)].astype(np.int64)
    chosen[0] = -1
    return chosen


def mean_probabilities(ids: FileSink, probabilities: FileSink, classes: Array) -> Array:
    """The mean probability of its class over the pixels of an object.

    Args:
        ids: (height, width) numbers of objects.
        probabilities: (height, width, classes) float32.
        classes: Of the objects, -1 for 0.

    Returns:
        (objects + 1,) float64, NaN for 0.
    """
    sums, pixels = np.zeros(len(classes)), np.zeros(len(classes), np.int64)
    for y, values in bands_of(probabilities):
        band = ids.read(y, 0, len(values), ids.shape[1])
        inside = band > 0
        numbers = band[inside]
        own = np.take_along_axis(values[inside], classes[numbers][:, None], axis=1)[:, 0]
        sums += np.bincount(numbers, own, minlength=len(sums))
        pixels += np.bincount(numbers, minlength=len(sums))
    means: Array = np.where(pixels > 0, sums / np.maximum(pixels, 1), np.nan)
    return means
