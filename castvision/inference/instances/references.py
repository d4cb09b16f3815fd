"""True objects to measure by: label masks in which every object has a number of its own, 0 where there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from castvision.data.reading.numbers import numbers_in
from castvision.data.reading.opening import open_mask
from castvision.ignored import IGNORED
from castvision.inference.scale import mask_at_level

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from castvision.data import ImageReader
    from castvision.data.reading.labels import ClassReader

    Truth = ImageReader | ClassReader

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class NumberedMask:
    """A mask of objects in place of one of classes, for a model with one class of objects and a background.

    Attributes:
        path: The mask.
        background: The class where no object is.
        thing: The class of the objects.
    """

    path: Path
    background: int
    thing: int

    def open(self) -> ClassesOfObjects:
        """A reader of classes; use it with ``with``."""
        return ClassesOfObjects(self)


class ClassesOfObjects:
    """Classes, by windows, from a mask of objects; a context manager.

    Args:
        mask: Of which.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a mask, or damaged.
    """

    def __init__(self, mask: NumberedMask) -> None:
        self._reader, self._mask = open_mask(mask.path), mask
        self.name, self.height, self.width = self._reader.name, self._reader.height, self._reader.width
        self.nodata: float | None = None
        self.georeference = self._reader.georeference

    def read(self, y: int, x: int, height: int, width: int) -> Array:
        """(height, width, 1) uint8: classes, and 255 where the mask says that nothing is known."""
        numbers, is_unknown = numbers_in(self._reader, y, x, height, width)
        labels = np.where(numbers > 0, self._mask.thing, self._mask.background)
        return np.where(is_unknown, IGNORED, labels).astype(np.uint8)[..., None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.close()


def true_objects(
    path: Path, image: ImageReader, level: int, labels: Array, things: Sequence[int]
) -> tuple[Array, Array]:
    """The true objects of an image, with their classes.

    Args:
        path: The mask of objects.
        image: The image.
        level: Of its pyramid, which is predicted.
        labels: (height, width) true classes there, 255 = ignored.
        things: Classes that have objects.

    Returns:
        (height, width) int64: 1, 2, 3, …, 0 = none; and the class of each, -1 first.

    Raises:
        ValueError: A mask of another size, or objects most of whose pixels have a class without objects.
    """
    with open_mask(path) as reader:
        mask: Any = mask_at_level(reader, image, level)
        numbers, _ = numbers_in(mask, 0, 0, mask.height, mask.width)
    numbers = np.where(labels == IGNORED, 0, numbers)
    found, compact = np.unique(numbers, return_inverse=True)
    compact = compact.reshape(numbers.shape) + (0 if len(found) and found[0] == 0 else 1)
    votes = np.zeros((compact.max() + 1, IGNORED + 1), np.int64)
    np.add.at(votes, (compact.ravel(), labels.ravel()), 1)
    classes = votes.argmax(axis=1)
    classes[0] = -1
    wrong = [label for label in np.unique(classes[1:]).tolist() if label not in things]
    if wrong:
        raise ValueError(
            f"expected objects of the classes {sorted(things)} in {str(path)!r}, got some where the mask of classes "
            f"has {wrong}; correct one of the masks, or name their classes with --things"
        )
    return compact, classes
