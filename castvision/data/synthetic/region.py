"""Region of the dot: which part of a random landscape is one piece with the marked spot?

White noise is smoothed by three box filters in each direction (nearly a Gaussian) and cut at a threshold that leaves
about half of the image, close to where the land just hangs together: regions of every size and shape, whose outlines
tell nothing locally about which of them is marked.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from castvision.data.datasets.batch import ENDLESS
from castvision.data.synthetic.compiled import SOURCES, below, entry_kernel, kernel, next_bits
from castvision.data.synthetic.dataset import DenseBatch, DenseDataset, check_range

LAND, DOT = 128, 255
"""Grey levels; the rest is black."""

PASSES = 3
LEAST, MOST = 0.08, 0.4
"""Share of the image that the marked region takes."""

MAX_RADIUS = 17  # (2 * 17 + 1) ** 6 is the last to fit into 31 bits
_SPOTS = 12  # positions of the dot tried in one landscape
_LANDSCAPES = 500

_SEA, _LAND, _REGION, _TRIED = 0, 1, 2, 3


class Field(NamedTuple):
    """Memory and thresholds of one size (T = S + 6 radius)."""

    rng: NDArray[np.uint64]  # (2,)
    noise: NDArray[np.int32]  # (T, T): smoothed in place, the result is the first S x S
    column: NDArray[np.int32]  # (S,): running sums
    parts: NDArray[np.uint8]  # (S, S): sea, land, the marked region, regions that were too large or small
    stack: NDArray[np.int32]  # (2 S * S,)
    thresholds: NDArray[np.int64]  # (2,): land is above the first, a dot lies above the second
    areas: NDArray[np.int64]  # (2,): least and most pixels of a region


class RegionDataset(DenseDataset):
    """A landscape with a dot on it; the target is the region that the dot lies in: 0 other, 1 the region.

    Pixels that touch only at a corner are not connected. The region takes 8 to 40 % of the image; dots that would
    give less or more are drawn again. See :class:`DenseDataset` for items and the other arguments.

    Args:
        img_size: Height and width, at least 32.
        radius: Of the smoothing, 1..17; by default a 128th of the image, at least 2.
        share: Of land in the image. Below one half the regions fall apart, above it they grow together.

    Raises:
        ValueError: An unknown split, or a number out of range.
        TypeError: A number that should be whole and isn't.
    """

    class_names = ("other", "region")

    def __init__(
        self,
        img_size: int = 512,
        radius: int | None = None,
        share: float = 0.5,
        split: str = "train",
        length: int = ENDLESS,
        seed: int = 0,
    ) -> None:
        super().__init__(img_size, split, length, seed)
        check_range("img_size", img_size, 32, 1 << 14)
        chosen = min(MAX_RADIUS, max(2, img_size // 128)) if radius is None else radius
        check_range("radius", chosen, 1, min(MAX_RADIUS, img_size // 8))
        check_range("share", share, 0.4, 0.6, whole=False)
        self.radius, self.share = chosen, share

    def make_batch(self, indices: NDArray[np.int64]) -> DenseBatch:
        """Generate the samples with these numbers, (B,).

        Raises:
            ValueError: If no region of the wanted area turns up.
        """
        size = self.img_size
        shape = (len(indices), size, size)
        batch = DenseBatch(np.zeros(shape, np.uint8), np.empty(shape, np.uint8), np.zeros((len(indices), 2), np.int64))
        padded = size + 2 * PASSES * self.radius
        field = Field(
            np.zeros(2, np.uint64),
            np.empty((padded, padded), np.int32),
            np.empty(size, np.int32),
            np.empty((size, size), np.uint8),
            np.empty(2 * size * size, np.int32),
            np.array(find_thresholds(self.radius, self.share)),
            np.array([LEAST * size**2, MOST * size**2], np.int64),
        )
        dot_radius = max(1, size // 64)
        _generate(field, self.start_streams(indices), (self.radius, dot_radius), batch)
        if (batch.dots < 0).any():
            raise ValueError(
                f"found no region of {LEAST:.2f} to {MOST:.2f} of the image in {_LANDSCAPES} landscapes; "
                f"take share nearer to 0.5 (got {self.share}) or another radius (got {self.radius})"
            )
        return batch


def find_thresholds(radius: int, share: float) -> list[int]:
    """Where to cut the smoothed noise, whose mean and deviation are known: for land, and for a dot well inside it."""
    box = np.ones(2 * radius + 1)
    weights = np.convolve(np.convolve(box, box), box)
    mean = weights.sum() ** 2 / 2
    deviation = (weights**2).sum() / 2
    cut = mean - NormalDist().inv_cdf(share) * deviation
    return [round(cut), round(cut + deviation / 2)]


@kernel
def smooth_rows(field: Field, radius: int) -> None:
    """Draw each row of noise, one random bit a pixel, and sum it ``PASSES`` times over a sliding window."""
    padded = field.noise.shape[0]
    width = 2 * radius + 1
    for y in range(padded):
        row = field.noise[y]
        for first in range(0, padded, 64):
            bits = next_bits(field.rng)
            for x in range(first, min(padded, first + 64)):
                row[x] = np.int32((bits >> np.uint64(x - first)) & np.uint64(1))
        length = padded
        for _ in range(PASSES):
            length -= width - 1
            total = np.int32(0)
            for x in range(width - 1):
                total += row[x]
            for x in range(length):
                first_value = row[x]
                total += row[x + width - 1]
                row[x] = total
                total -= first_value


@kernel
def smooth_columns(field: Field, radius: int) -> None:
    """The same downwards, all columns at once."""
    noise, column = field.noise, field.column
    size = len(column)
    width = 2 * radius + 1
    height = noise.shape[0]
    for _ in range(PASSES):
        height -= width - 1
        column[:] = 0
        for y in range(width - 1):
            for x in range(size):
                column[x] += noise[y, x]
        for y in range(height):
            for x in range(size):
                total = column[x] + noise[y + width - 1, x]
                column[x] = total - noise[y, x]
                noise[y, x] = total


@kernel
def fill(parts: np.ndarray, start: tuple[int, int], mark: int, stack: np.ndarray) -> int:
    """Mark the land that hangs together with a pixel, span by span; returns its area."""
    size = parts.shape[0]
    stack[0] = start[0] * size + start[1]
    count, area = 1, 0
    while count > 0:
        count -= 1
        y, x = stack[count] // size, stack[count] % size
        if parts[y, x] != _LAND:
            continue
        left, right = x, x + 1
        while left > 0 and parts[y, left - 1] == _LAND:
            left -= 1
        while right < size and parts[y, right] == _LAND:
            right += 1
        for i in range(left, right):
            parts[y, i] = mark
        area += right - left
        for row in (y - 1, y + 1):
            if row >= 0 and row < size:
                for i in range(left, right):
                    if parts[row, i] == _LAND and (i == left or parts[row, i - 1] != _LAND):
                        stack[count] = row * size + i
                        count += 1
    return area


@kernel
def find_region(field: Field, radius: int) -> int:
    """One landscape: mark a region of the wanted area; returns the dot's pixel as ``y * size + x``, or -1."""
    smooth_rows(field, radius)
    smooth_columns(field, radius)
    parts, noise = field.parts, field.noise
    size = parts.shape[0]
    for y in range(size):
        for x in range(size):
            parts[y, x] = noise[y, x] > field.thresholds[0]
    for _ in range(_SPOTS):
        position = below(field.rng, size * size)
        y, x = position // size, position % size
        if noise[y, x] > field.thresholds[1] and parts[y, x] == _LAND:
            area = fill(parts, (y, x), _REGION, field.stack)
            if field.areas[0] <= area <= field.areas[1]:
                return position
            for row in range(size):
                for i in range(size):
                    if parts[row, i] == _REGION:
                        parts[row, i] = _TRIED
    return -1


@kernel
def draw(field: Field, dot: tuple[int, int, int], image: np.ndarray, target: np.ndarray) -> None:
    """Write image and target; the dot covers pixels of its own region only, so that the image shows every outline."""
    parts = field.parts
    size = parts.shape[0]
    for y in range(size):
        for x in range(size):
            image[y, x] = LAND if parts[y, x] != _SEA else 0
            target[y, x] = parts[y, x] == _REGION
    y, x, radius = dot
    for i in range(max(0, y - radius), min(size, y + radius + 1)):
        for j in range(max(0, x - radius), min(size, x + radius + 1)):
            if target[i, j] and (i - y) * (i - y) + (j - x) * (j - x) <= radius * radius:
                image[i, j] = DOT


@entry_kernel
def _generate(
    field: Field, streams: NDArray[np.uint64], radii: tuple[int, int], batch: DenseBatch, sources: int = SOURCES
) -> None:
    size = field.parts.shape[0]
    for i in range(len(streams)):
        field.rng[:] = streams[i]
        position = -1
        for _ in range(_LANDSCAPES):
            position = find_region(field, radii[0])
            if position >= 0:
                break
        if position < 0:
            batch.dots[i, 0] = -1
            continue
        y, x = position // size, position % size
        batch.dots[i, 0], batch.dots[i, 1] = y, x
        draw(field, (y, x, radii[1]), batch.images[i], batch.targets[i])
