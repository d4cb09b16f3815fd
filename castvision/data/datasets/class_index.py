"""Where the pixels of each class lie, by blocks: what drawing windows balanced by class needs to know of huge masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from castvision.data.datasets.regions import Region
from castvision.data.datasets.sources import ImageSources
from castvision.data.reading.labels import IGNORED

_BLOCK = 256
_CHUNK = 4 * _BLOCK


class ClassIndex:
    """How many pixels of each class each block of some regions holds; built in one pass over the masks.

    Args:
        sources: Images and masks.
        regions: Which parts of them.

    Attributes:
        counts: (255,) int64: labelled pixels of each class.
        present: Classes that occur.
    """

    def __init__(self, sources: ImageSources, regions: Sequence[Region]) -> None:
        self.regions = list(regions)
        found: dict[int, list[tuple[Any, Any]]] = {}
        for number, (source, area) in enumerate(self.regions):
            for y in range(0, area.height, _CHUNK):
                for x in range(0, area.width, _CHUNK):
                    size = min(_CHUNK, area.height - y), min(_CHUNK, area.width - x)
                    labels = sources.read_labels(source, area.y + y, area.x + x, *size)
                    for label, places, amounts in _count(labels):
                        corners = places * _BLOCK + (y, x)
                        rows = np.column_stack([np.full(len(corners), number), corners]).astype(np.int32)
                        found.setdefault(label, []).append((rows, amounts))
        self.counts = np.zeros(IGNORED, np.int64)
        self._places: dict[int, Any] = {}
        self._ends: dict[int, Any] = {}
        for label, parts in found.items():
            self._places[label] = np.concatenate([rows for rows, _ in parts])
            self._ends[label] = np.cumsum(np.concatenate([amounts for _, amounts in parts]))
            self.counts[label] = self._ends[label][-1]
        self.present = sorted(found)

    def draw(self, rng: np.random.Generator, sources: ImageSources) -> tuple[int, int, int]:
        """A pixel: its class is any of those present with equal chance, and so is its place among the class's pixels.

        Args:
            rng: Decides.
            sources: Those the index was built of.

        Returns:
            (number of the region, row, column), in pixels of the image.
        """
        label = self.present[int(rng.integers(len(self.present)))]
        rank = int(rng.integers(self.counts[label]))
        entry = int(np.searchsorted(self._ends[label], rank, side="right"))
        number, y, x = (int(value) for value in self._places[label][entry])
        source, area = self.regions[number]
        size = min(_BLOCK, area.height - y), min(_BLOCK, area.width - x)
        labels = sources.read_labels(source, area.y + y, area.x + x, *size)
        before = int(self._ends[label][entry - 1]) if entry else 0
        row, column = divmod(int(np.flatnonzero(labels == label)[rank - before]), size[1])
        return number, area.y + y + row, area.x + x + column


def _count(labels: Any) -> list[tuple[int, Any, Any]]:
    """(class, blocks (n, 2) by row and column, pixels (n,)) of a chunk."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for row in range(-(-labels.shape[0] // _BLOCK)):
        for column in range(-(-labels.shape[1] // _BLOCK)):
            block = labels[row * _BLOCK : (row + 1) * _BLOCK, column * _BLOCK : (column + 1) * _BLOCK]
            first = int(block[0, 0])
            if (block == first).all():  # most blocks of most masks: many times faster than counting
                counts = {first: block.size}
            else:
                table = np.bincount(block.ravel(), minlength=IGNORED)
                counts = {int(label): int(table[label]) for label in np.flatnonzero(table)}
            for label, amount in counts.items():
                if label != IGNORED:
                    found.setdefault(label, []).append((row, column, amount))
    tables = {label: np.array(rows, np.int64) for label, rows in found.items()}
    return [(label, table[:, :2], table[:, 2]) for label, table in tables.items()]
