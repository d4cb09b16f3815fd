"""What the dense tasks share: items by index, one compiled call for a batch, distances from the dot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from castvision.data.datasets.batch import Sample
from castvision.data.synthetic.geodesic import geodesic_distance
from castvision.data.synthetic.pathfinder.sample import SPLITS, check_key

ENDLESS = 1 << 40
FOLDER = Path(__file__).parent


class DenseBatch(NamedTuple):
    """B images of S x S pixels with their truth.

    Attributes:
        images: (B, S, S) uint8.
        targets: (B, S, S) uint8 classes.
        dots: (B, 2) int64, (y, x) of the dot that distances count from.
    """

    images: NDArray[np.uint8]
    targets: NDArray[np.uint8]
    dots: NDArray[np.int64]


class DenseDataset(Dataset[Sample], ABC):
    """Template: a subclass makes a batch from the numbers of its samples.

    Items are (image, target): image (1, S, S) float32 in [-1, 1]; target (S, S) int64. Seed, split and index decide
    an item, whichever worker or batch makes it. Where figures by distance are wanted, items are (image, target, {},
    {"distance": (S, S) float32}): no model is shown it, see `castvision.data.datasets.batch.Batch`.

    Args:
        img_size: Height and width.
        split: "train", "val" or "test": the same index gives another image in each.
        length: Number of images; the default is beyond reach, for training that never sees an image twice.
        seed: Another seed is another set.

    Attributes:
        class_names: In the order of the labels; the last one is the class that needs the dot.
        gives_distance: Whether items come with how long the way from the dot is, in image sides; as the crow flies
            where no way leads, so that false marks lie somewhere, too.

    Raises:
        ValueError: An unknown split, or a number out of range.
    """

    class_names: tuple[str, ...]
    gives_distance: bool = False

    def __init__(self, img_size: int, split: str, length: int, seed: int) -> None:
        check_key(seed, split)
        if length < 1:
            raise ValueError(f"expected length >= 1, got {length=}")
        self.img_size, self.split, self.length, self.seed = img_size, split, length, seed

    @abstractmethod
    def make_batch(self, indices: NDArray[np.int64]) -> DenseBatch:
        """Generate the samples with these numbers, (B,) in 0..length - 1."""

    @property
    def key(self) -> NDArray[np.uint64]:
        """(seed, number of the split), where the random streams of the samples begin."""
        return np.array([self.seed, SPLITS[self.split]], np.uint64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """One item; a batch is made faster by :meth:`__getitems__`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several items in one call of the compiled generator, as torch's loaders ask for a batch."""
        batch = self.make_batch(self._numbers(indices))
        images = torch.from_numpy(batch.images)[:, None].float().div_(127.5).sub_(1)  # B, 1, S, S
        pairs = zip(images, torch.from_numpy(batch.targets).long(), strict=True)
        if not self.gives_distance:
            return list(pairs)
        distances = (self._everywhere(index, y, x) for index, (y, x) in zip(indices, batch.dots, strict=True))
        return [(*pair, {}, {"distance": distance}) for pair, distance in zip(pairs, distances, strict=True)]

    def _everywhere(self, index: int, y: int, x: int) -> Tensor:
        """(S, S) in image sides: along the way from the dot at (y, x), straight where no way leads."""
        along = self.distance(index)
        rows, columns = np.indices(along.shape)
        distance = np.where(np.isfinite(along), along, np.hypot(rows - y, columns - x)) / self.img_size
        return torch.from_numpy(distance.astype(np.float32))

    def distance(self, index: int) -> NDArray[np.float32]:
        """How far the way from the dot is to every pixel.

        Returns:
            (S, S) float32: steps between neighbouring pixels (up, down, left, right) that are not black; infinite
            where no such way leads.
        """
        batch = self.make_batch(self._numbers([index]))
        return geodesic_distance(batch.images[0] > 0, (int(batch.dots[0, 0]), int(batch.dots[0, 1])))

    def _numbers(self, indices: Sequence[int]) -> NDArray[np.int64]:
        outside = [i for i in indices if not -self.length <= i < self.length]
        if outside:
            raise IndexError(f"expected indices below {self.length}, got {outside[0]}")
        return np.array([i % self.length for i in indices], np.int64)


def check_range(name: str, value: float, low: float, high: float, *, whole: bool = True) -> None:
    """Raise unless a number lies between two bounds, inclusive.

    Raises:
        TypeError: Not a number, or not whole where it has to be.
        ValueError: Out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        raise TypeError(f"expected {name} to be a {'whole ' if whole else ''}number, got {name}={value!r}")
    if not low <= value <= high:
        raise ValueError(f"expected {low} <= {name} <= {high}, got {name}={value}")
