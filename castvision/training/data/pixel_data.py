"""Image files checked before training, normalised by their own statistics, augmented; segmentation from such files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from castvision.data.datasets.batch import Batch, Sample, drop_full_mask, pad_collate
from castvision.data.datasets.checking import check_headers, check_samples, set_channels, spread
from castvision.data.datasets.coco import Boxes, open_coco
from castvision.data.datasets.segmentation import open_pairs
from castvision.data.transforms.augmentation import Augmentation, SampleTransform
from castvision.data.transforms.batch_augmentation import BatchAugmentation
from castvision.data.transforms.statistics import ChannelStatistics
from castvision.training.data.data_module import ImageDataModule, Pairs, check_img_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.datasets.samples import PixelDataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFormat:
    """How image files become a model's input.

    Args:
        in_chans: Channels; grey and RGB are turned into one another. None = those of the first training image.
        bands: Channels of the files to take, in this order, numbered from 1 on as GDAL does; opacity is one like the
            others then. None = all.
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
    bands: list[int] | None = None

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


SIZED_IMAGES = 32
"""Images whose sizes say whether images are resized."""

FORMAT = ImageFormat()
AUGMENTATION = Augmentation()
"""What the data modules below take if nothing else is configured; both are frozen."""


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
        check_img_size((img_size, img_size))  # before anything is read
        train = splits["train"]
        self.bands = pixels.bands
        in_chans = set_channels(splits, pixels.in_chans, pixels.bands)
        self.channel_names = check_headers(splits)
        given = pixels.statistics(in_chans)
        measured = check_samples(splits, pixels.check, class_names)
        statistics = given or measured
        super().__init__(class_names, in_chans, (img_size, img_size), statistics.mean, statistics.std)
        for split, dataset in splits.items():
            how = augmentation if split == "train" else None
            dataset.transform = SampleTransform(img_size, self.mean, self.std, augmentation=how, fit=pixels.fit)
        self._splits = dict(splits)
        self.fits = pixels.fit
        others = [name for name, dataset in splits.items() if _has_other_size(dataset, img_size)]
        self.resize = "fit" if pixels.fit and others else "none"
        if not pixels.fit and set(others) - {"train"}:
            logger.info(
                "held-out images are shown whole, at their own sizes: castvision evaluate works by tiles of %d pixels, "
                "as prediction does, and its figures are those of it",
                img_size,
            )
        if pixels.fit and others and "train" not in others:
            logger.warning(
                "training images are %d pixels already; those of %s are not and are brought to that, so what they show "
                "changes in size: pixels.fit: false leaves them as they are",
                img_size,
                " and ".join(others),
            )
        if train.read(0)[1].ndim == 2:
            self.collate = _collate

    def load_by(
        self, batch_size: int | None, num_workers: int, seed: int, batch_augmentation: BatchAugmentation | None = None
    ) -> None:
        """Set how batches are made, once the images are known.

        Raises:
            ValueError: A number out of range, or fewer training images than a batch has.
        """
        super().load_by(batch_size, num_workers, seed, batch_augmentation)
        self.fit_batch(len(self._splits["train"]))

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
        return cast("Pairs", self._splits[split])  # map-style by what it does, see `PixelDataset`


def _has_other_size(dataset: PixelDataset, img_size: int) -> bool:
    """Whether any image has another size: crops that have it already leave a model free to work on tiles."""
    sizes = (dataset.read(index)[0].shape[:2] for index in spread(len(dataset), SIZED_IMAGES))
    return any(max(size) != img_size for size in sizes)


def _collate(samples: Sequence[Sample]) -> Batch:
    """Images of any sizes."""
    return drop_full_mask(pad_collate(samples))


class SegmentationDataModule(PixelDataModule):
    """Folders or lists of images and masks; see `castvision.data.find_pairs` for the layouts.

    Args:
        root: The folder, or one CSV file.
        class_names: In the order of the labels; None = those of ``classes.txt``, or a number for each label found in
            the masks that are checked ("background" and "object" where there are only 0 and 1).
        img_size: Height and width of training images.
        label_map: From labels in the masks (numbers, or colours such as ``"#ff0000"``) to classes (numbers or names) or
            ``ignore``; see `LabelMap`. None = labels are class numbers, 255 is ignored.
        val_share: Share of the images held out where the data name no split.
        pixels: Channels, normalisation and sizes.
        augmentation: What varies while training.
        batch_augmentation: What varies on the device, for whole batches.
        batch_size: Images a step and process; None = 8, or fewer for few images, see `fitting_batch_size`.
        num_workers: Loader processes.
        seed: Of the order of the images, and of what is held out.
        allow_outside_root: Let lists name files outside their folder; a list from a stranger may name any file.

    Raises:
        FileNotFoundError: A folder, list or file that is missing.
        ValueError: Images without masks, masks that do not fit, labels without a class, or a number out of range.
    """

    task_kind = "segmentation"
    largest_batch = 8

    def __init__(  # the signature is the configuration
        self,
        root: str,
        class_names: list[str] | None = None,
        img_size: int = 512,
        label_map: dict[int | str, int | str] | None = None,
        val_share: float = 0.2,
        pixels: ImageFormat = FORMAT,
        augmentation: Augmentation = AUGMENTATION,
        batch_augmentation: BatchAugmentation | None = None,
        batch_size: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
        allow_outside_root: bool = False,
    ) -> None:
        splits, labels = open_pairs(
            root, class_names, label_map, val_share=val_share, seed=seed, allow_outside_root=allow_outside_root,
            checked=pixels.check,
        )  # fmt: skip
        self.label_map = labels.mapping
        super().__init__(splits, labels.class_names, img_size, pixels, augmentation)
        self.load_by(batch_size, num_workers, seed, batch_augmentation)


class CocoDataModule(PixelDataModule):
    """COCO's instance annotations as classes of pixels: "background", then the categories by their ids.

    Args:
        root: What the other paths are relative to.
        annotations: A JSON file for "train", "val" and, if there is one, "test".
        folders: The folder of a split's images; by default its annotation file's.
        boxes: What becomes of objects with a box and no outline: refuse, ignore or paint; see `read_coco`.
        img_size: Height and width of training images.
        pixels: Channels, normalisation and sizes.
        augmentation: What varies while training.
        batch_augmentation: What varies on the device, for whole batches.
        batch_size: Images a step and process; None = 8, or fewer for few images, see `fitting_batch_size`.
        num_workers: Loader processes.
        seed: Of the order of the images.
        allow_outside_root: Let lists name files outside their folder; a list from a stranger may name any file.

    Raises:
        FileNotFoundError: A file that is missing.
        ValueError: Splits with different categories, one image in two splits, annotations that cannot be used, or a
            number out of range.
    """

    task_kind = "segmentation"
    largest_batch = 8

    def __init__(  # the signature is the configuration
        self,
        root: str,
        annotations: dict[str, str],
        folders: dict[str, str] | None = None,
        boxes: Boxes = "refuse",
        img_size: int = 512,
        pixels: ImageFormat = FORMAT,
        augmentation: Augmentation = AUGMENTATION,
        batch_augmentation: BatchAugmentation | None = None,
        batch_size: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
        allow_outside_root: bool = False,
    ) -> None:
        splits, names = open_coco(root, annotations, folders, boxes=boxes, allow_outside_root=allow_outside_root)
        super().__init__(splits, names, img_size, pixels, augmentation)
        self.load_by(batch_size, num_workers, seed, batch_augmentation)
