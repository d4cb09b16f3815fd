"""Segmentation on images that do not fit in memory: windows of slides and rasters with their masks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch.utils.data import default_collate

from castvision.data.datasets.batch import Batch, Sample, drop_full_mask, with_masks
from castvision.data.datasets.checking import warn_of_missing
from castvision.data.datasets.margins import warn_of_margins
from castvision.data.datasets.overlap import ground_of_regions, warn_of_overlap
from castvision.data.datasets.sources import ClassIndex, ImageSources, whole_images
from castvision.data.datasets.vector_labels import VectorLabels
from castvision.data.datasets.window_folders import open_sources
from castvision.data.datasets.windows import WindowDataset
from castvision.data.reading.labels import check_classes_found, names_up_to
from castvision.data.transforms.statistics import ChannelStatistics, RunningStatistics
from castvision.training.data.data_module import ImageDataModule, Pairs
from castvision.training.data.resumable import FreshSampler
from castvision.training.data.window_splits import split_regions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.utils.data import Sampler

    from castvision.data.datasets.regions import Region

logger = logging.getLogger(__name__)

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}
MEASURED_WINDOWS = 256
"""How many windows mean and standard deviation are measured on."""


class WindowDataModule(ImageDataModule):
    """``ROOT/images/NAME.*`` and ``ROOT/masks/NAME.*``, images of any size and masks of labels (255 = ignored).

    Or ``ROOT/train/images`` with ``ROOT/train/masks``, and ``ROOT/val`` (and ``ROOT/test``) alike; or images alone, and
    vector labels. Training windows are drawn at random, new ones each epoch; held-out windows are a grid over the
    held-out slides or blocks, without those that hold no label. Class names stand in ``ROOT/classes.txt``, one a line,
    or are given.

    Args:
        root: The folder that holds ``images`` and ``masks``, or ``train`` and ``val`` that do.
        size: Height and width of a window.
        level: Of the images' pyramids that is read.
        context_size: (height, width) at which the whole image comes with each window, for a task of the same
            ``context_size``. All images are read once for it before training. With blocks, a window's surroundings show
            held-out ground, but never its labels. None = windows alone.
        class_names: In the order of the labels; None = those of ``classes.txt``, or a number for each label found.
        label_map: From labels in the masks (numbers, or colours such as ``"#ff0000"``) to classes (numbers or names) or
            ``ignore``; see `castvision.data.reading.labels.LabelMap`. None = labels are class numbers, 255 is ignored.
        split: By "source" (whole images; for slides) or by "block" (squares of each image; for a few large rasters);
            None = by source, if there are enough images with labels for all splits, else by block. Not used where
            folders name the splits.
        shares: Of the splits; None = 0.8 train, 0.1 val and 0.1 test.
        block: Height and width of a block; None = the largest, up to 2,048, that gives every split its share of labels.
            Every split gets blocks with labels, and training every class that there is.
        margin: Pixels left out between blocks.
        balance: Draw training windows so that each class is met equally often; None = all ground equally often.
        symmetries: Turn and mirror training windows.
        train_length: Windows an epoch.
        in_chans: Channels of the images, of which 2 and 4 count an opacity channel (many rasters declare their infrared
            so); None = as they come, composed over white.
        bands: Channels to read, in this order, numbered from 1 on as GDAL does; None = all.
        mean: Per channel; see `castvision.data.ChannelStatistics`. None = measured on training windows, with ``std``.
        std: Per channel.
        batch_size: Windows a step and process; None = 16, or fewer of a short ``train_length``.
        num_workers: Loader processes.
        seed: Of the splits and of the windows.
        vector: Labels as polygons and points on the ground, in place of masks; see
            `castvision.data.datasets.vector_labels.VectorLabels`.

    Raises:
        FileNotFoundError: A folder or file that is missing.
        ValueError: Names that do not match, files or labels that cannot be used, too few images or blocks for the
            splits, or a number out of range.
    """

    keeps_units = True

    def __init__(  # the signature is the configuration
        self,
        root: str,
        size: int = 256,
        level: int = 0,
        context_size: tuple[int, int] | None = None,
        class_names: list[str] | None = None,
        label_map: dict[int | str, int | str] | None = None,
        split: Literal["source", "block"] | None = None,
        shares: dict[str, float] | None = None,
        block: int | None = None,
        margin: int = 0,
        balance: Literal["class"] | None = "class",
        symmetries: bool = True,
        train_length: int = 8_000,
        in_chans: int | None = None,
        bands: list[int] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
        vector: VectorLabels | None = None,
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        if train_length < (batch_size or 1):
            raise ValueError(f"expected train_length >= batch_size, got {train_length=}, {batch_size=}")
        self.fit_batch(train_length)
        shares = shares or SHARES
        if not {"train", "val"} <= set(shares) <= {"train", "val", "test"}:
            raise ValueError(f"expected shares of train, val and, if wanted, test, got {shares}")
        sources, owners, names = open_sources(
            root, level=level, context_size=context_size, class_names=class_names, label_map=label_map,
            in_chans=in_chans, bands=bands, vector=vector,
        )  # fmt: skip
        self.label_map = None if sources.labels is None else sources.labels.mapping
        self.bands, self.channel_names = bands, sources.channel_names
        warn_of_margins(sources)
        regions = split_regions(
            sources, owners, shares, seed, split=split, block=block, margin=margin, size=size
        )  # fmt: skip
        warn_of_overlap({name: ground_of_regions(sources, parts) for name, parts in regions.items()})
        self._datasets = {
            name: WindowDataset(sources, size, sampling="grid", regions=parts).keep_labelled()
            for name, parts in regions.items()
            if name != "train"
        }
        self._datasets["train"] = WindowDataset(
            sources, size, balance=balance, regions=regions["train"], symmetries=symmetries, seed=seed
        )
        if names is None:
            present = ClassIndex(sources, whole_images(sources)).present
            names = names_up_to(max([*present, 1]))
        drawn = self._datasets["train"].index or ClassIndex(sources, regions["train"])
        sources.close()
        warn_of_missing(check_classes_found(drawn.counts, names, f"the training masks in {root!r}"))
        if mean is None or std is None:
            statistics = _measure(sources, regions["train"], size, seed)
        else:
            statistics = ChannelStatistics(tuple(mean), tuple(std))
        for name, dataset in self._datasets.items():
            dataset.statistics = statistics
            if len(dataset) == 0:
                raise ValueError(
                    f"expected labelled pixels in every split, found none for {name!r}; label some, or split otherwise"
                )
        super().__init__(names, sources.channels, (size, size), statistics.mean, statistics.std)
        self.context_size = sources.context_size
        self.level, self.scale = level, common_scale(sources.scales)
        self.train_length = train_length

    def description(self) -> dict[str, Any]:
        """Also the level and the scale, at which the model is to be used."""
        mpp, unit = self.scale or (None, None)
        return {**super().description(), "level": self.level, "mpp": mpp, "mpp_unit": unit}

    @staticmethod
    def collate(samples: Sequence[Sample]) -> Batch:
        """Windows are of one size."""
        return drop_full_mask(Batch(*default_collate(with_masks(samples))))

    def dataset(self, split: str) -> Pairs:
        """The endless training windows, or a split's grid.

        Raises:
            ValueError: No such split.
        """
        if split not in self._datasets:
            raise ValueError(f"expected a split of {', '.join(self._datasets)}, got {split!r}; give it a share")
        return self._datasets[split]

    def sampler(self, dataset: Pairs) -> Sampler[int]:
        """New windows each epoch."""
        return FreshSampler(self.train_length)


def common_scale(scales: Sequence[tuple[float, str] | None]) -> tuple[float, str] | None:
    """The scale of all images.

    Args:
        scales: Size of a pixel and its unit, of each image.

    Returns:
        The same of all, if they agree to a tenth; else None, which is said where some are stated.
    """
    stated = [scale for scale in scales if scale is not None]
    if not stated:
        return None
    sizes, units = [size for size, _ in stated], {unit for _, unit in stated}
    if len(stated) == len(scales) and len(units) == 1 and max(sizes) <= 1.1 * min(sizes):
        return stated[0]
    logger.warning(
        "the images have pixels of %g to %g %s (%d of %d state it); the checkpoint will remember no scale",
        min(sizes), max(sizes), " or ".join(sorted(units)), len(stated), len(scales),
    )  # fmt: skip
    return None


def _measure(sources: ImageSources, regions: Sequence[Region], size: int, seed: int) -> ChannelStatistics:
    """Mean and deviation of random windows of the training regions, so that a set of slides takes seconds."""
    drawn = WindowDataset(sources, size, regions=regions, seed=seed)
    rng = np.random.default_rng((seed, 0))
    running = RunningStatistics()
    for _ in range(MEASURED_WINDOWS):
        source, inside = drawn.random_place(rng)
        running.add(sources.read_image(source, *inside))
    sources.close()
    return running.result()
