"""A task that is learned in a second: pixels above a threshold, or images brighter than grey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml
from torch.utils.data import Dataset

from castvision.data.transforms.batch_augmentation import BatchAugmentation
from castvision.training.class_paths import allow_classes
from castvision.training.data.data_module import ImageDataModule
from castvision.training.data.resumable import FreshSampler, ShuffledSampler

allow_classes([__name__])  # configurations of these tests name the data module below

TINY_VIT = {
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "patch_size": 4,
    "img_size": 16,
    "in_chans": 1,
    "dynamic_img_size": True,
}


class Noise(Dataset):
    def __init__(self, task: str, offset: int, length: int) -> None:
        self.task, self.offset, self.length = task, offset, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        if index >= self.length:
            raise IndexError(index)
        generator = torch.Generator().manual_seed(self.offset + index)
        label = index % 2
        image = 0.7 * torch.randn(1, 16, 16, generator=generator) + (1 if label else -1) * (self.task == "image")
        return image, torch.tensor(label) if self.task == "image" else (image[0] > 0.3).long()


class NoiseDataModule(ImageDataModule):
    def __init__(
        self, task: str = "pixel", train_length: int = 320, batch_size: int = 16, num_workers: int = 0
    ) -> None:
        names = {"image": ["dark", "bright"], "pixel": ["background", "joining path"]}[task]
        super().__init__(names, 1, (16, 16), (0.5,), (0.5,))
        self.task, self.train_length = task, train_length
        self.batch_size, self.num_workers = batch_size, num_workers

    def dataset(self, split: str) -> Noise:
        if split == "train":
            return Noise(self.task, 0, 1 << 30)
        return Noise(self.task, {"val": 1 << 31, "test": 1 << 32}[split], 64)

    def sampler(self, dataset: Noise) -> FreshSampler:
        return FreshSampler(self.train_length)


class ShakenNoise(Noise):
    """A set with an end, whose images change at random each time, on the CPU."""

    def __getitem__(self, index: int):
        image, target = super().__getitem__(index)
        return image + 0.3 * torch.rand(()) + 0.1 * float(np.random.rand()), target


class ShuffledNoiseDataModule(NoiseDataModule):
    """Shuffled, augmented one by one and by the batch."""

    def __init__(self, task: str = "pixel", train_length: int = 60, batch_size: int = 4, num_workers: int = 0) -> None:
        super().__init__(task, train_length, batch_size, num_workers)
        self.batch_augmentation = BatchAugmentation(hflip=0.0, color=0.3)

    def dataset(self, split: str) -> Noise:
        if split == "train":
            return ShakenNoise(self.task, 0, self.train_length)
        return Noise(self.task, {"val": 1 << 31, "test": 1 << 32}[split], 40)

    def sampler(self, dataset: Noise) -> ShuffledSampler:
        return ShuffledSampler(dataset, self.seed)


def recipe(task: str = "pixel", **changes) -> dict:
    content = {
        "model": {
            "class_path": {"pixel": "SegmentationTask", "image": "ClassificationTask"}[task],
            "init_args": {
                "model_name": "vit_tiny_patch16_224",
                "num_classes": 2,
                "model_kwargs": dict(TINY_VIT),
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.004}},
            },
        },
        "data": {"class_path": "NoiseDataModule", "init_args": {"task": task}},
        "trainer": {"accelerator": "cpu", "log_every_n_steps": 5, "max_epochs": 2},
    }
    content["model"]["init_args"].update(changes)
    return content


@pytest.fixture
def write_config(tmp_path):
    """A configuration file of the tiny task."""

    def write(task: str = "pixel", name: str = "tiny", **changes) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe(task, **changes)))
        return str(path)

    return write
