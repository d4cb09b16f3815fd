"""Pathfinder as a torch data set that makes its images when they are asked for: as many as one likes, none stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from castvision.data.synthetic.pathfinder.engine import Batch, make_batch
from castvision.data.synthetic.pathfinder.masks import JOINING, make_gap_free_masks, make_semantic_masks
from castvision.data.synthetic.pathfinder.sample import SPLITS, check_key
from castvision.data.synthetic.pathfinder.spec import PathfinderSpec

TASKS = ("classify", "join", "three-class")
LINES = ("ink", "gap-free")


class PathfinderDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and targets by index; any length, since index and seed decide everything.

    Items are (image, target): image (1, S, S) float32 in [-1, 1]; target for "classify" the label () int64, for "join"
    a mask (S, S) int64 of the path that joins the dots (every image has one), for "three-class" a mask of 0 other, 1 a
    long path that does not join the dots, 2 the path that does.

    Args:
        spec: What to draw.
        task: "classify", "join" or "three-class".
        split: "train", "val", "test" or "written".
        length: Number of images; the default is beyond reach, for training that never sees an image twice.
        seed: Another seed is another set.
        lines: How masks show a path: "ink" its paddles, "gap-free" one unbroken line.
        symmetries: Turn or mirror every image by one of the 8 symmetries of the square, always the same one for an
            index. Labels don't change. The generator itself prefers some directions, so this widens a training set.

    Raises:
        ValueError: An unknown task, split or kind of lines, or a number out of range.
    """

    def __init__(  # noqa: PLR0913 - the options of a data set
        self,
        spec: PathfinderSpec,
        task: str = "classify",
        split: str = "train",
        length: int = 1 << 40,
        seed: int = 0,
        *,
        lines: str = "ink",
        symmetries: bool = False,
    ) -> None:
        check_key(seed, split)
        if task not in TASKS:
            raise ValueError(f"expected task to be one of {', '.join(TASKS)}, got {task=}")
        if lines not in LINES:
            raise ValueError(f"expected lines to be one of {', '.join(LINES)}, got {lines=}")
        if length < 1:
            raise ValueError(f"expected length >= 1, got {length=}")
        self.spec, self.task, self.split, self.length, self.seed = spec, task, split, length, seed
        self.lines, self.symmetries = lines, symmetries

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One item; a batch is made faster by :meth:`__getitems__`."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Several items in one call of the compiled generator, as torch's loaders ask for a batch."""
        outside = [i for i in indices if not -self.length <= i < self.length]
        if outside:
            raise IndexError(f"expected indices below {self.length}, got {outside[0]}")
        wanted = np.array([i % self.length for i in indices], np.int64)
        label = 1 if self.task == "join" else None
        batch = make_batch(self.spec, self.seed, SPLITS[self.split], wanted, label)
        images = torch.from_numpy(batch.images)[:, None].float() / 127.5 - 1  # B, 1, S, S
        targets = torch.from_numpy(batch.labels) if self.task == "classify" else self._masks(batch)
        items = list(zip(images, targets, strict=True))
        if not self.symmetries:
            return items
        chosen = _choose_symmetries(self.seed, SPLITS[self.split], wanted)
        return [(turn(image, which), turn(target, which)) for (image, target), which in zip(items, chosen, strict=True)]

    def _masks(self, batch: Batch) -> Tensor:
        make_masks = make_semantic_masks if self.lines == "ink" else make_gap_free_masks
        masks = torch.from_numpy(make_masks(self.spec, batch))  # B, S, S
        return (masks == JOINING).long() if self.task == "join" else masks.long()


def _choose_symmetries(seed: int, split: int, numbers: NDArray[np.int64]) -> list[int]:
    """One of the 8 symmetries for each number, by a fixed hash."""
    salt = (seed * 0x9E3779B97F4A7C15 + (split + 1) * 0xD1342543DE82EF95) % 2**64
    value = numbers.astype(np.uint64) * np.uint64(0xBF58476D1CE4E5B9) + np.uint64(salt)
    value = (value ^ (value >> np.uint64(31))) * np.uint64(0x94D049BB133111EB)
    return [int(number) for number in value >> np.uint64(61)]


def turn(value: Tensor, which: int) -> Tensor:
    """Symmetry ``which`` (0..7) of the square on the last two dimensions; a label () stays as it is."""
    if value.ndim < 2:
        return value
    mirrored = value.flip(-1) if which >= 4 else value
    return torch.rot90(mirrored, which % 4, (-2, -1)).contiguous()
