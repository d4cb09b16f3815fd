"""Pathfinder as a torch data set that makes its images when they are asked for: as many as one likes, none stored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from castvision.data.pathfinder.engine import make_batch
from castvision.data.pathfinder.sample import JOINING, SPLITS, check_key, semantic_masks
from castvision.data.pathfinder.spec import PathfinderSpec

TASKS = ("classify", "join", "three-class")


class PathfinderDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and targets by index; any length, since index and seed decide everything.

    Items are (image, target): image (1, S, S) float32 in [-1, 1]; target for "classify" the label () int64, for "join"
    a mask (S, S) int64 of the path that joins the dots (every image has one), for "three-class" a mask of 0 other, 1 a
    long path that does not join the dots, 2 the path that does.

    Args:
        spec: What to draw.
        task: "classify", "join" or "three-class".
        split: "train", "val", "test" or "written".
        length: Number of images; an endless training set gives a number beyond reach.
        seed: Another seed is another set.

    Raises:
        ValueError: An unknown task or split, or a number out of range.
    """

    def __init__(
        self, spec: PathfinderSpec, task: str = "classify", split: str = "train", length: int = 1 << 40, seed: int = 0
    ) -> None:
        check_key(seed, split)
        if task not in TASKS:
            raise ValueError(f"expected task to be one of {', '.join(TASKS)}, got {task=}")
        if length < 1:
            raise ValueError(f"expected length >= 1, got {length=}")
        self.spec, self.task, self.split, self.length, self.seed = spec, task, split, length, seed

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
        images = torch.from_numpy(batch.images)[:, None].float() / 127.5 - 1
        if self.task == "classify":
            return list(zip(images, torch.from_numpy(batch.labels), strict=True))
        masks = torch.from_numpy(semantic_masks(self.spec, batch)).long()
        if self.task == "join":
            masks = (masks == JOINING).long()
        return list(zip(images, masks, strict=True))
