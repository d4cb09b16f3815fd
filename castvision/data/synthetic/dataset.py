"""What the data sets share: items by index, one compiled call for a batch, distances from the dot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from castvision.data.datasets.batch import Sample
from castvision.data.synthetic.compiled import SPLITS, check_stream, entry_kernel, start_streams


class SyntheticDataset(Dataset[Sample], ABC):
    """Template: a subclass makes the items of some indices at once.

    Seed, split and index decide an item, whichever worker or batch makes it.

    Args:
        split: "train", "val", "test" or "written": the same index gives another image in each.
        length: Number of images.
        seed: Another seed is another set.

    Raises:
        ValueError: An unknown split, or a number out of range.
    """

    def __init__(self, split: str, length: int, seed: int) -> None:
        check_stream(seed, split)
        if length < 1:
            raise ValueError(f"expected length >= 1, got {length=}")
        self.split, self.length, self.seed = split, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        """One item; a batch is made faster by :meth:`__getitems__`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        """Several items in one call of the compiled generator, as torch's loaders ask for a batch."""
        return self.make_items(self.wrap_indices(indices))

    def wrap_indices(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Indices in 0..length - 1, (B,); negative ones count from the end.

        Raises:
            IndexError: An index out of range.
        """
        outside = [i for i in indices if not -self.length <= i < self.length]
        if outside:
            raise IndexError(f"expected indices below {self.length}, got {outside[0]}")
        return np.array([i % self.length for i in indices], np.int64)

    @abstractmethod
    def make_items(self, indices: NDArray[np.int64]) -> list[Sample]:
        """The items of indices in 0..length - 1, (B,)."""


def scale_images(images: NDArray[np.uint8]) -> Tensor:
    """Grey images (B, S, S) of 0..255 as (B, 1, S, S) float32 in [-1, 1]."""
    return torch.from_numpy(images)[:, None].float().div_(127.5).sub_(1)


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


class DenseDataset(SyntheticDataset):
    """Template for data sets with a class for each pixel: a subclass makes a batch from indices.

    Items are (image, target): image (1, S, S) float32 in [-1, 1]; target (S, S) int64. For metrics by distance they are
    (image, target, {}, {"distance": (S, S) float32}); no model is shown the last part, see
    :class:`castvision.data.datasets.batch.Batch`.

    Args:
        img_size: Height and width.
        split: "train", "val" or "test": the same index gives another image in each.
        length: Number of images.
        seed: Another seed is another set.

    Attributes:
        class_names: In the order of the labels; the last one is the class that needs the dot.
        gives_distance: Whether items come with the distance of every pixel from the dot, in image sides: along the way
            where one leads there, else in a straight line, so that wrongly marked pixels have a distance, too.

    Raises:
        ValueError: An unknown split, or a number out of range.
    """

    class_names: tuple[str, ...]
    gives_distance: bool = False

    def __init__(self, img_size: int, split: str, length: int, seed: int) -> None:
        super().__init__(split, length, seed)
        self.img_size = img_size

    @abstractmethod
    def make_batch(self, indices: NDArray[np.int64]) -> DenseBatch:
        """Generate the samples of indices in 0..length - 1, (B,)."""

    def start_streams(self, indices: NDArray[np.int64]) -> NDArray[np.uint64]:
        """Where the random streams of some samples begin, (B, 2)."""
        return start_streams(self.seed, SPLITS[self.split], indices)

    def make_items(self, indices: NDArray[np.int64]) -> list[Sample]:
        """The items of indices in 0..length - 1, (B,)."""
        batch = self.make_batch(indices)
        pairs = zip(scale_images(batch.images), torch.from_numpy(batch.targets).long(), strict=True)
        if not self.gives_distance:
            return list(pairs)
        distances = (self._distance_anywhere(int(index), *dot) for index, dot in zip(indices, batch.dots, strict=True))
        return [(*pair, {}, {"distance": distance}) for pair, distance in zip(pairs, distances, strict=True)]

    def _distance_anywhere(self, index: int, y: int, x: int) -> Tensor:
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
        batch = self.make_batch(self.wrap_indices([index]))
        return geodesic_distance(batch.images[0] > 0, (int(batch.dots[0, 0]), int(batch.dots[0, 1])))


def geodesic_distance(passable: NDArray[np.bool_], start: tuple[int, int]) -> NDArray[np.float32]:
    """Steps from a pixel to every other one through passable pixels, four neighbours to each.

    Args:
        passable: (height, width).
        start: (y, x).

    Returns:
        (height, width) float32; infinite where no way leads, and everywhere if the start is not passable.

    Raises:
        ValueError: ``passable`` is no picture, or the start lies outside.
    """
    if passable.ndim != 2:
        raise ValueError(f"expected passable of shape (height, width), got {passable.shape=}")
    height, width = passable.shape
    y, x = start
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(f"expected a start within {height} x {width} pixels, got {start=}")
    steps = np.full((height + 2, width + 2), -1, np.int32)  # -1: a wall, as the frame is
    steps[1:-1, 1:-1][passable] = 0  # 0: not reached yet
    if passable[y, x]:
        _search(steps.reshape(-1), (y + 1) * (width + 2) + x + 1, width + 2, np.empty(passable.size, np.int32))
    inside = steps[1:-1, 1:-1]
    return np.where(inside > 0, inside - 1, np.inf).astype(np.float32)


@entry_kernel
def _search(steps: NDArray[np.int32], start: int, stride: int, queue: NDArray[np.int32]) -> None:
    """Number every reachable pixel by its distance + 1."""
    steps[start] = 1
    queue[0] = start
    first, last = 0, 1
    while first < last:
        here = queue[first]
        first += 1
        for move in (-stride, -1, 1, stride):
            if steps[here + move] == 0:
                steps[here + move] = steps[here] + 1
                queue[last] = here + move
                last += 1


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
