"""What every data module shares: the facts a model needs of its data, loaders, the order of images, class counts."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from castvision.data.datasets.batch import Batch, Sample, as_batch
from castvision.data.datasets.checking import check_batch_size, spread
from castvision.data.reading.labels import check_class_names
from castvision.data.reading.pixels import MAX_PIXELS
from castvision.ignored import IGNORED
from castvision.training.data.resumable import (
    HeldOutSampler,
    ResumableLoader,
    SeededItems,
    ShuffledSampler,
    outlive_signals,
    world,
)
from castvision.training.randomness import seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.utils.data import Sampler

    from castvision.data.input_format import Resize
    from castvision.data.transforms.batch_augmentation import BatchAugmentation

logger = logging.getLogger(__name__)

Pairs = Dataset[Sample]

COUNTED_IMAGES = 256
"""Images that `count_classes` looks at."""
STEPS_AN_EPOCH = 10
"""That a batch size leaves at least, where it is chosen."""
SMALLEST_BATCH = 4
"""Chosen for a handful of images, although they make fewer steps then."""


class ImageDataModule(LightningDataModule, ABC):
    """Template: a subclass makes the data sets of the splits, and calls `load_by`.

    Args:
        class_names: In the order of the labels.
        in_chans: Channels of an image.
        img_size: (height, width).
        mean: Per channel: what was subtracted, in units of 0..1 or the file's (``keeps_units``).
        std: Per channel: what was divided by, likewise.

    Attributes:
        batch_size: Images a step and process; see `held_out_batch_size` for the others.
        largest_batch: The batch size of many images, where none is given.
        num_workers: Loader processes for training; held-out images have as many.
        seed: Of the order of the images.
        keeps_units: Signed and float images come in the file's own units (Kelvin, reflectance), as their mean and std;
            otherwise each image is brought to 0..1.
        resize: How files become ``img_size``, see `castvision.models.recipe.InputFormat`.
        task_kind: The kind of task the targets are for; None if any task may take them.
        label_map: What the labels in mask files mean, see `castvision.data.reading.labels.LabelMap`; None = they are
            class numbers.
        context_size: (height, width) of the whole image that comes with each item; None = items come alone.
        batch_augmentation: Of training batches, on the device; None = none.
        bands: Channels read of the files, numbered from 1 on; None = all.
        channel_names: Of those that are read, by the files; None = they state none.
        collate: Makes a batch of samples, see `Batch`.
    """

    batch_size: int = 16
    largest_batch: int = 16
    num_workers: int = 1
    seed: int = 0
    keeps_units: bool = False
    resize: Resize = "none"
    task_kind: str | None = None
    label_map: dict[str, int | str] | None = None
    context_size: tuple[int, int] | None = None
    batch_augmentation: BatchAugmentation | None = None
    bands: Sequence[int] | None = None
    channel_names: Sequence[str] | None = None
    collate: Callable[[list[Any]], Any] = staticmethod(default_collate)

    def __init__(
        self,
        class_names: Sequence[str],
        in_chans: int,
        img_size: tuple[int, int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        check_class_names(class_names)
        check_img_size(img_size)
        self.class_names = list(class_names)
        self.in_chans = in_chans
        self.img_size = img_size
        self.mean = mean
        self.std = std
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, int] | None = None

    def load_by(
        self, batch_size: int | None, num_workers: int, seed: int, batch_augmentation: BatchAugmentation | None = None
    ) -> None:
        """Set how batches are made; constructors that read files call it before they do, and `fit_batch` after.

        Raises:
            ValueError: ``batch_size`` < 1 or ``num_workers`` < 0.
        """
        if (batch_size is not None and batch_size < 1) or num_workers < 0:
            raise ValueError(f"expected batch_size >= 1 and num_workers >= 0, got {batch_size=}, {num_workers=}")
        self._is_batch_chosen = batch_size is None
        self.batch_size = self.largest_batch if batch_size is None else batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.batch_augmentation = batch_augmentation

    def fit_batch(self, images: int) -> None:
        """Choose the batch size by the number of training images, unless it was given.

        Raises:
            ValueError: A given batch size larger than the number of images, of which no epoch would have a step.
        """
        if self._is_batch_chosen:
            self.batch_size = fitting_batch_size(images, self.largest_batch)
        else:
            check_batch_size(images, self.batch_size)

    @abstractmethod
    def dataset(self, split: str) -> Pairs:
        """The images and targets of "train", "val" or "test"."""

    def sampler(self, dataset: Pairs) -> Sampler[int]:
        """The order of training images."""
        return ShuffledSampler(dataset, self.seed)  # type: ignore[arg-type]  # map-style data sets have a length

    @property
    def steps_an_epoch(self) -> int:
        """Batches of one process: an incomplete last one is left out."""
        return len(self.sampler(self.dataset("train"))) // self.batch_size  # type: ignore[arg-type]  # ours have one

    def description(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""
        return {
            "in_chans": self.in_chans,
            "img_size": list(self.img_size),
            "mean": list(self.mean),
            "std": list(self.std),
            "keeps_units": self.keeps_units,
            "resize": self.resize,
            **({} if self.label_map is None else {"label_map": self.label_map}),
            **({} if self.bands is None else {"bands": list(self.bands)}),
            **({} if self.channel_names is None else {"channel_names": list(self.channel_names)}),
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
        trainer = self.trainer
        if trainer is None or not trainer.training:
            return batch
        if self.batch_augmentation is None:
            return as_batch(batch)
        with seeded(self.seed, trainer.fit_loop.total_batch_idx, trainer.global_rank):
            return self.augment_batch(as_batch(batch))

    @property
    def held_out_batch_size(self) -> int:
        """Held-out images at once: no gradients, more room."""
        return 4 * self.batch_size

    def train_dataloader(self) -> DataLoader[Sample]:
        """Batches of training images; an incomplete last one is dropped."""
        dataset = self.dataset("train")
        items, sampler = SeededItems(dataset, self.seed), self.sampler(dataset)
        # the sampler by name: Lightning gives another one in its place for trainer.overfit_batches
        loader = ResumableLoader(items, sampler=sampler, batch_size=self.batch_size, drop_last=True, **self._loading())
        if self._position is not None:
            loader.load_state_dict(self._position)
        self._train_loader, self._position = loader, None
        return loader

    # NOTE: Lightning would give a loader its own state back, but not to one that it made to count the steps of a
    # schedule, before it read the checkpoint's state.
    def state_dict(self) -> dict[str, Any]:
        """How far training images have been read, for the checkpoint."""
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Training images made ready after this go on from there."""
        self._position = state_dict or None

    def on_exception(self, exception: BaseException) -> None:
        """End the processes that read training images: Lightning forgets them in a round of held-out images."""
        if self._train_loader is not None:
            self._train_loader.close()

    def val_dataloader(self) -> DataLoader[Sample]:
        """Batches of the held-out images that choose the checkpoint."""
        return self._loader(self.dataset("val"), self.held_out_batch_size)

    def test_dataloader(self) -> DataLoader[Sample]:
        """Batches of the images read once, at the end."""
        return self._loader(self.dataset("test"), self.held_out_batch_size)

    def predict_dataloader(self) -> DataLoader[Sample]:
        """The test images."""
        return self.test_dataloader()

    def _loader(self, dataset: Pairs, batch_size: int) -> DataLoader[Sample]:
        sampler = HeldOutSampler(dataset) if world()[0] > 1 else None  # type: ignore[arg-type]  # ours have a length
        return DataLoader(dataset, batch_size=batch_size, sampler=sampler, **self._loading())

    def _loading(self) -> dict[str, Any]:
        """Arguments of all loaders."""
        return {
            "num_workers": self.num_workers,
            "collate_fn": self.collate,
            "persistent_workers": self.num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": outlive_signals,
        }


def check_img_size(img_size: Sequence[int]) -> None:
    """Refuse sizes of training images that no memory holds.

    Args:
        img_size: (height, width).

    Raises:
        ValueError: None, or more than `MAX_PIXELS` pixels.
    """
    if min(img_size) < 1 or img_size[0] * img_size[1] > MAX_PIXELS:
        raise ValueError(
            f"expected img_size from 1 to {math.isqrt(MAX_PIXELS):,}, got {img_size[0]}; "
            "larger images are cut or made smaller"
        )


def fitting_batch_size(images: int, largest: int) -> int:
    """A batch size that leaves `STEPS_AN_EPOCH` steps in an epoch, if that can be.

    Args:
        images: Training images, >= 1.
        largest: Of many images.

    Returns:
        ``largest``, or the first half, quarter, ... of it with enough steps; not below `SMALLEST_BATCH`, unless there
        are fewer images.
    """
    size = largest
    while size >= 2 * SMALLEST_BATCH and images // size < STEPS_AN_EPOCH:
        size //= 2
    return max(1, min(size, images))


def count_classes(dataset: Pairs, num_classes: int, sample: int = COUNTED_IMAGES) -> Tensor:
    """Count the pixels of each class in images spread evenly over a data set; the random state stays as it is.

    Args:
        dataset: Gives (image, mask), mask (height, width) int64 with 255 = ignored.
        num_classes: Classes.
        sample: At most so many images.

    Returns:
        (num_classes,) int64.

    Raises:
        ValueError: A label that is no class.
    """
    sized: Any = dataset  # map-style data sets have a length, which their type does not say
    counts = torch.zeros(num_classes, dtype=torch.int64)
    indices = spread(len(sized), sample)
    with torch.random.fork_rng(devices=[]):
        for index in indices:
            mask = torch.as_tensor(dataset[index][1])
            found = torch.bincount(mask[mask != IGNORED], minlength=num_classes)
            if len(found) > num_classes:
                raise ValueError(
                    f"expected labels 0..{num_classes - 1} or {IGNORED}, got {len(found) - 1} in training image {index}"
                )
            counts += found
    logger.info("pixels of each class in %d training images: %s", len(indices), counts.tolist())
    return counts
