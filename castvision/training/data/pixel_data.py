"""Data modules of image files: checked before training, normalised by their own statistics, augmented."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.datasets.batch import Batch, Sample, drop_full_mask, pad_collate
from castvision.data.reading.labels import IGNORED
from castvision.data.transforms.augmentation import Augmentation, SampleTransform
from castvision.data.transforms.statistics import ChannelStatistics, RunningStatistics
from castvision.training.data.data_module import ImageDataModule, Pairs, check_loading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.datasets.samples import PixelDataset
    from castvision.data.transforms.batch_augmentation import BatchAugmentation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFormat:
    """How image files become a model's input.

    Args:
        in_chans: Channels; grey and RGB are turned into one another. None = those of the first training image.
        mean: Per channel or one for all: in units of 0..1 for unsigned integers, in the files' own for others.
            None = measured on the training images that are checked.
        std: Likewise.
        fit: Bring each image's longer side to ``img_size``, so that all of it is seen; if False, pixels keep their
            size: training cuts windows of ``img_size``, held-out images go through whole, one at a time.
        check: Images of each split, evenly spread, that are read before training begins; None = all.

    Raises:
        ValueError: mean without std, other numbers of them than channels, or a number out of range.
    """

    in_chans: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    fit: bool = True
    check: int | None = 1000

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"expected both mean and std or none of them, got mean={self.mean}, std={self.std}")
        if min(self.in_chans or 1, 1 if self.check is None else self.check) < 1:
            raise ValueError(f"expected in_chans and check >= 1, got {self}")

    def statistics(self, in_chans: int) -> ChannelStatistics | None:
        """What is given, for each channel."""
        if self.mean is None or self.std is None:
            return None
        counts = {len(self.mean), len(self.std)}
        if not counts <= {1, in_chans}:
            raise ValueError(f"expected 1 or {in_chans} values of mean and std, got mean={self.mean}, std={self.std}")
        mean, std = (values * (in_chans // len(values)) for values in (self.mean, self.std))
        return ChannelStatistics(tuple(mean), tuple(std))


class PixelDataModule(ImageDataModule):
    """Template: a subclass opens the data sets of the splits and says what they are for.

    Args:
        splits: Data sets by split; "train" and "val" at least.
        class_names: In the order of the labels.
        img_size: Height and width of training images.
        pixels: How files become tensors.
        augmentation: What varies while training.

    Raises:
        FileNotFoundError: A file that is missing.
        ValueError: Images or targets that cannot be used, by name; see also `check_samples`.
    """

    keeps_units = True

    def __init__(
        self,
        splits: Mapping[str, PixelDataset],
        class_names: Sequence[str],
        img_size: int,
        pixels: ImageFormat,
        augmentation: Augmentation,
    ) -> None:
        train = splits["train"]
        in_chans = pixels.in_chans or train.read(0)[0].shape[-1]
        for dataset in splits.values():
            dataset.in_chans = in_chans
        given = pixels.statistics(in_chans)
        measured = check_samples(splits, pixels.check, class_names)
        used = given or measured
        super().__init__(list(class_names), in_chans, (img_size, img_size), used.mean, used.std)
        for split, dataset in splits.items():
            how = augmentation if split == "train" else None
            dataset.transform = SampleTransform(img_size, self.mean, self.std, augmentation=how, fit=pixels.fit)
        self._splits = dict(splits)
        self.fits = pixels.fit
        if train.read(0)[1].ndim == 2:
            self.collate = _collate

    def load_by(
        self, batch_size: int, num_workers: int, seed: int, batch_augmentation: BatchAugmentation | None
    ) -> None:
        """Set how batches are made.

        Raises:
            ValueError: See `check_loading`.
        """
        check_loading(batch_size, num_workers)
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.batch_augmentation = batch_augmentation
        if len(self._splits["train"]) < batch_size:
            raise ValueError(
                f"expected at least batch_size training images, got {len(self._splits['train'])} and {batch_size=}; "
                "set a smaller batch_size"
            )

    @property
    def held_out_batch_size(self) -> int:
        """One at a time where images keep their own sizes."""
        return super().held_out_batch_size if self.fits else 1

    def dataset(self, split: str) -> Pairs:
        """A split's images.

        Raises:
            FileNotFoundError: The data have no such split.
        """
        if split not in self._splits:
            raise FileNotFoundError(f"expected images for {split!r}, found {', '.join(self._splits)} only")
        return self._splits[split]


def _collate(samples: Sequence[Sample]) -> Batch:
    """Images of any sizes."""
    return drop_full_mask(pad_collate(samples))


def check_samples(
    splits: Mapping[str, PixelDataset], count: int | None, class_names: Sequence[str]
) -> ChannelStatistics:
    """Read samples of every split, so that wrong data are found before training and not in its third hour.

    Args:
        splits: Data sets by split.
        count: Samples of each, evenly spread; None = all.
        class_names: Of the labels.

    Returns:
        Statistics of the training images read.

    Raises:
        ValueError: A sample that cannot be used; masks that hold nothing but one class and ignored pixels.
    """
    running = RunningStatistics()
    pixels_of = np.zeros(IGNORED + 1, dtype=np.int64)
    for split, dataset in splits.items():
        length = len(dataset)
        chosen = range(length) if count is None or count >= length else [n * length // count for n in range(count)]
        logger.info("reading %d of %d images of %s", len(chosen), length, split)
        for place in chosen:
            pixels, target = dataset.read(place)
            if split == "train":
                running.add(pixels)
                if target.ndim == 2:
                    pixels_of += np.bincount(target.ravel(), minlength=len(pixels_of))
    _check_classes(pixels_of, class_names)
    return running.result()


def _check_classes(pixels_of: np.ndarray[Any, np.dtype[np.int64]], class_names: Sequence[str]) -> None:
    present = np.flatnonzero(pixels_of[:IGNORED])
    if not pixels_of.any() or len(class_names) < 2:
        return
    if pixels_of[IGNORED] and len(present) < 2:
        raise ValueError(
            f"expected two classes or more in the training masks, found {len(present)} and ignored pixels (255); "
            "if 255 is a class in the files, say so: label_map: {0: 0, 255: 1}"
        )
    missing = [name for place, name in enumerate(class_names) if place not in present]
    if missing:
        logger.warning("no pixel of %s in the training masks read", ", ".join(missing[:8]))
