"""A training set that grows harder: which data set an image comes from follows from its number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from castvision.data.datasets.batch import Sample
from castvision.data.synthetic.dataset import SyntheticDataset


class Curriculum(SyntheticDataset):
    """The first images from one data set, the next from another, and so on; for loaders that read them in order.

    An image's number decides, so a run that was interrupted goes on where it was.

    Args:
        stages: Data sets of one split and seed, easiest first.
        ends: For each but the last, the number of the first image that comes from the next one; growing.

    Raises:
        ValueError: Other numbers of ends than stages need, or ends that do not grow.
    """

    def __init__(self, stages: Sequence[SyntheticDataset], ends: Sequence[int]) -> None:
        if len(ends) != len(stages) - 1 or any(late <= early for early, late in zip([0, *ends], ends, strict=False)):
            raise ValueError(f"expected {len(stages) - 1} growing numbers of images > 0, got {list(ends)}")
        last = stages[-1]
        super().__init__(last.split, last.length, last.seed)
        self.stages, self.ends = list(stages), np.array(ends, np.int64)

    def stage_of(self, index: int) -> int:
        """Which stage an image belongs to."""
        return int(np.searchsorted(self.ends, index, side="right"))

    def make_items(self, indices: NDArray[np.int64]) -> list[Sample]:
        """The items of indices in 0..length - 1, (B,)."""
        chosen = np.searchsorted(self.ends, indices, side="right")
        items: dict[int, Sample] = {}
        for number in np.unique(chosen):
            places = np.flatnonzero(chosen == number)
            made = self.stages[number].make_items(indices[places])
            items |= dict(zip(places.tolist(), made, strict=True))
        return [items[place] for place in range(len(indices))]
