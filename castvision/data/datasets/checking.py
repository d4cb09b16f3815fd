"""Data sets of image files read before training begins, so that wrong data are found then, not hours into it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from castvision.data.datasets.overlap import ground_of, warn_of_overlap
from castvision.data.datasets.regions import Block
from castvision.data.datasets.samples import open_pixels
from castvision.data.reading.agreement import check_same_order
from castvision.data.reading.labels import check_classes_found
from castvision.data.reading.pixels import is_empty
from castvision.data.transforms.statistics import RunningStatistics
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.datasets.overlap import Ground
    from castvision.data.datasets.samples import PixelDataset
    from castvision.data.transforms.statistics import ChannelStatistics

logger = logging.getLogger(__name__)

_COMPARED = 500


def set_channels(splits: Mapping[str, PixelDataset], in_chans: int | None, bands: Sequence[int] | None) -> int:
    """Say which channels are read of all images.

    Args:
        splits: Data sets by split, "train" among them; changed in place.
        in_chans: Channels; None = those of the first training image.
        bands: Of the files, see `castvision.data.datasets.samples.load_pixels`.

    Returns:
        The channels.

    Raises:
        FileNotFoundError: The first image is missing.
        ValueError: The first training image or its target cannot be used.
    """
    for dataset in splits.values():
        dataset.bands = bands
    channels = in_chans or splits["train"].read(0)[0].shape[-1]
    for dataset in splits.values():
        dataset.in_chans = channels
    return channels


def check_headers(splits: Mapping[str, PixelDataset]) -> tuple[str, ...] | None:
    """Compare what files say of themselves, of at most 500 images of each split: the order of channels, and places.

    Args:
        splits: Data sets by split, "train" first. Nothing is compared where its first image says nothing.

    Returns:
        What that image calls the channels that are read; None where it has no names, or is no file.

    Raises:
        ValueError: An image with the same channels in another order.
    """
    names: tuple[str, ...] | None = None
    grounds: dict[str, list[Ground | None]] = {split: [] for split in splits}
    for split, dataset in splits.items():
        for index in spread(len(dataset), _COMPARED):
            path = Path(dataset.name(index))
            if not path.exists():
                return None
            with open_pixels(path, dataset.in_chans, dataset.bands) as image:
                names = names or image.channel_names
                check_same_order(names, image)
                part = Block(0, 0, image.height, image.width)
                grounds[split].append(ground_of(str(path), image.georeference, part))
            if names is None and grounds["train"][0] is None:
                return None
    warn_of_overlap(grounds)
    return names


def check_samples(
    splits: Mapping[str, PixelDataset], count: int | None, class_names: Sequence[str]
) -> ChannelStatistics:
    """Read samples of every split.

    Args:
        splits: Data sets by split.
        count: Samples of each, evenly spread; None = all.
        class_names: Of the labels.

    Returns:
        Statistics of the training images read.

    Raises:
        ValueError: A sample that cannot be used; training masks that hold nothing but one class and ignored pixels, or
            held-out ones, all of them read, without any class.
    """
    running = RunningStatistics()
    pixels_of = np.zeros(IGNORED + 1, dtype=np.int64)
    for split, dataset in splits.items():
        indices = spread(len(dataset), count)
        logger.info("reading %d of %d images of %s", len(indices), len(dataset), split)
        is_unlabelled = split == "val" and 0 < len(indices) == len(dataset)
        for index in indices:
            pixels, target = dataset.read(index)
            is_unlabelled &= target.ndim == 2 and bool((target[~is_empty(pixels)] == IGNORED).all())
            running.units.add(pixels)
            if split == "train":
                running.add(pixels)
                if target.ndim == 2:
                    pixels_of += np.bincount(target[~is_empty(pixels)], minlength=len(pixels_of))
        if is_unlabelled:
            raise ValueError(
                f"expected labelled pixels in the masks of {split}, found none in {len(indices)}: all are ignored, or "
                "lie where the image is empty, and nothing could be measured; label some, or hold out other images"
            )
    if pixels_of.any() and len(class_names) > 1:
        warn_of_missing(check_classes_found(pixels_of, class_names, "the training masks"))
    return running.result()


def check_batch_size(images: int, batch_size: int) -> None:
    """Refuse a batch size of which no epoch would have a step.

    Args:
        images: For training.
        batch_size: Images a step.

    Raises:
        ValueError: There are fewer images.
    """
    if images < batch_size:
        raise ValueError(
            f"expected at least batch_size training images, got {images} and batch_size={batch_size}; "
            "set a smaller batch_size, or leave it out to have one chosen"
        )


def warn_of_missing(class_names: Sequence[str]) -> None:
    """Say, before training starts, which classes no training mask holds a pixel of."""
    if class_names:
        logger.warning(
            "no pixel of %s in the training masks: nothing of it will be learned", ", ".join(class_names[:8])
        )


def spread(length: int, count: int | None) -> list[int]:
    """At most ``count`` indices, spread evenly over ``range(length)``; all of them for None."""
    count = length if count is None else min(count, length)
    return [number * length // count for number in range(count)]
