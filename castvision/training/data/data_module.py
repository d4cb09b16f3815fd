"""Data modules: what to train on, what to hold out, and the facts a model needs of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset, default_collate

from castvision.data.datasets.batch import Batch, Sample
from castvision.training.data.sampling import ShuffledSampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.data import Sampler

    from castvision.data.transforms.batch_augmentation import BatchAugmentation

Pairs = Dataset[Sample]


class ImageDataModule(LightningDataModule, ABC):
    """Template: a subclass makes the data sets of the splits.

    Args:
        class_names: In the order of the labels.
        in_chans: Channels of an image.
        img_size: (height, width).
        mean: Per channel: what was subtracted, in units of 0..1 or the file's (``keeps_units``).
        std: Per channel: what was divided by, likewise.

    Attributes:
        batch_size: Images a step and process; see `held_out_batch_size` for the others.
        num_workers: Loader processes for training; held-out images have as many.
        seed: Of the order of the images.
        keeps_units: Signed and float images come in the file's own units (Kelvin, reflectance), as their mean and std;
            otherwise each image is brought to 0..1.
        task_kind: The kind of task the targets are for; None = not said.
        context_size: (height, width) of the whole image that comes with each item; None = items come alone.
        batch_augmentation: Of training batches, on the device; None = none.
        collate: Makes a batch of samples, see `Batch`.
    """

    batch_size: int = 16
    num_workers: int = 1
    seed: int = 0
    keeps_units: bool = False
    task_kind: str | None = None
    context_size: tuple[int, int] | None = None
    batch_augmentation: BatchAugmentation | None = None
    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)

    def __init__(
        self,
        class_names: list[str],
        in_chans: int,
        img_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.class_names = class_names
        self.in_chans = in_chans
        self.img_size = img_size
        self.mean = mean
        self.std = std

    @abstractmethod
    def dataset(self, split: str) -> Pairs:
        """The images and targets of "train", "val" or "test"."""

    def sampler(self, dataset: Pairs) -> Sampler[int]:
        """The order of training images."""
        return ShuffledSampler(dataset, self.seed)  # type: ignore[arg-type]  # map-style data sets have a length

    def description(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {
            "in_chans": self.in_chans,
            "img_size": list(self.img_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "keeps_units": self.keeps_units,
        }

    def augment_batch(self, batch: Batch) -> Batch:
        """Apply ``batch_augmentation``, on any device; masks go with their images, other targets stay."""
        if self.batch_augmentation is None:
            return batch
        image, target, extras, _ = batch
        labels = target if target.ndim == 3 else None
        image, labels, pixel_mask = self.batch_augmentation(image, labels, extras.get("pixel_mask"))
        moved = {} if pixel_mask is None else {"pixel_mask": pixel_mask}
        return Batch(image, target if labels is None else labels, {**extras, **moved})

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Lightning's hook: training batches are augmented on the device."""
        is_training = self.trainer is not None and self.trainer.training
        return self.augment_batch(Batch(*batch)) if is_training else batch

    @property
    def held_out_batch_size(self) -> int:
        """Held-out images at once: no gradients, more room."""
        return 4 * self.batch_size

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches of training images; an incomplete last one is dropped."""
        dataset = self.dataset("train")
        return self._loader(dataset, self.batch_size, sampler=self.sampler(dataset), drop_last=True)

    def val_dataloader(self) -> DataLoader[Sample]:
        """Batches of the held-out images that choose the checkpoint."""
        return self._loader(self.dataset("val"), self.held_out_batch_size)

    def test_dataloader(self) -> DataLoader[Sample]:
        """Batches of the images read once, at the end."""
        return self._loader(self.dataset("test"), self.held_out_batch_size)

    def predict_dataloader(self) -> DataLoader[Sample]:
        """The test images."""
        return self.test_dataloader()

    def _loader(self, dataset: Pairs, batch_size: int, **how: Any) -> DataLoader[Sample]:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            **how,
        )


def check_loading(batch_size: int, num_workers: int) -> None:
    """Refuse numbers no loader can work with.

    Raises:
        ValueError: ``batch_size`` < 1 or ``num_workers`` < 0.
    """
    if batch_size < 1 or num_workers < 0:
        raise ValueError(f"expected batch_size >= 1 and num_workers >= 0, got {batch_size=}, {num_workers=}")
