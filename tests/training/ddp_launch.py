"""A program that several processes run: ``python ddp_launch.py`` takes the arguments of ``castvision train``."""

from __future__ import annotations

import os
import sys

import torch.distributed as dist

from castvision.training.callbacks.report import Report
from castvision.training.class_paths import allow_classes
from castvision_cli.train import main
from tests.training.conftest import Noise, ShakenNoise, ShuffledNoiseDataModule

allow_classes(["tests.training.ddp_launch"])

SIGNAL_AT = "CASTVISION_TEST_SIGNAL_AT"
"""An environment variable: NUMBER@STEP, a signal that the second process sends itself, and when."""


class OddNoiseDataModule(ShuffledNoiseDataModule):
    """101 images to train with and 41 held out, augmented one by one only: by what depends on no process."""

    def __init__(self, task: str = "image", batch_size: int = 4, num_workers: int = 0) -> None:
        super().__init__(task, 101, batch_size, num_workers)
        self.batch_augmentation = None

    def dataset(self, split: str) -> Noise:
        if split == "train":
            return ShakenNoise(self.task, 0, self.train_length)
        return Noise(self.task, {"val": 1 << 31, "test": 1 << 32}[split], 41)


def send_itself(number: int, step: int) -> None:
    original = Report.on_train_batch_end

    def patched(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == step and dist.get_rank() == 1:
            os.kill(os.getpid(), number)

    Report.on_train_batch_end = patched


if __name__ == "__main__":
    if SIGNAL_AT in os.environ:
        send_itself(*map(int, os.environ[SIGNAL_AT].split("@")))
    sys.exit(main(sys.argv[1:]))
