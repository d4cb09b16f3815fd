"""Long Range Arena's Image task: CIFAR-10 in grey, one token a pixel.

Split as the official code: the first 90 % of the training images, the last 10 % as validation, CIFAR's test set.
Normalised as S4: mean 122.6 and standard deviation 61 of 255.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10

from castvision.data.transforms.model_input import to_model_input

MEAN, STD = 122.6 / 255, 61.0 / 255


class LRAImage(Dataset[tuple[Tensor, Tensor]]):
    """Items (image (1, 32, 32) float32, about zero mean and unit spread; label () int64).

    Args:
        root: Folder that holds ``cifar-10-batches-py``, as torchvision unpacks it.
        split: "train", "val" or "test".
        download: Let torchvision download what is missing.

    Raises:
        ValueError: An unknown split.
        RuntimeError: torchvision finds no data set there, or one with other checksums.
    """

    source: type[CIFAR10] = CIFAR10

    def __init__(self, root: str | Path, split: str = "train", download: bool = False) -> None:
        if split not in ("train", "val", "test"):
            raise ValueError(f"expected split 'train', 'val' or 'test', got {split=}")
        self.images = self.source(str(root), train=split != "test", download=download)
        count = len(self.images)
        first = count * 9 // 10
        self.indices = {"train": range(first), "val": range(first, count), "test": range(count)}[split]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image and its class."""
        image, label = self.images[self.indices[index]]
        return to_model_input(np.asarray(image.convert("L")), 1, (MEAN,), (STD,)), torch.tensor(label)
