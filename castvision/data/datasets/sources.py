"""Images and their masks as a source of windows: a few open at a time, labels checked and counted by blocks."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from castvision.data.datasets.regions import Block, Region
from castvision.data.datasets.vector_labels import VectorMask
from castvision.data.reading import Georeference, ImageReader, open_image, open_mask
from castvision.data.reading.agreement import check_same_order, check_same_place
from castvision.data.reading.labels import LabelMap, mark_ignored
from castvision.data.reading.overview import read_overview
from castvision.data.reading.pixels import Pixels, is_empty, nearest
from castvision.data.reading.reader import Alpha
from castvision.data.transforms.model_input import unit
from castvision.ignored import IGNORED

logger = logging.getLogger(__name__)

Pair = tuple[str | os.PathLike[str], str | os.PathLike[str] | VectorMask | None]
_MAX_OPEN = 8
_CACHE_BYTES = 32 << 20
_BLOCK = 256
_CHUNK = 4 * _BLOCK


class ImageSources:
    """Pairs of an image and its mask, of any size.

    Pickles without its open files, so that loader processes open their own.

    Args:
        pairs: (image, mask or None), paths, or a mask that is drawn from vector labels; a mask has its image's size, or
            that of the level that is read.
        level: Of the images that is read; masks are sampled to it without blending.
        num_classes: Labels are below it; None for any up to 254. 255 is ignored, and so is a mask's nodata value.
        labels: From the masks' labels or colours to classes, in place of ``num_classes``; None = they are classes.
        alpha: What becomes of an image's opacity channel; see `castvision.data.open_image`.
        bands: Channels of the images to read; see there.
        context_size: (height, width) of an overview of each image that is read now and kept, so that windows come with
            their surroundings; None for none.

    Attributes:
        overviews: (*context_size, C) float32 of each image in the units of `ChannelStatistics`; empty without context.
        sizes: (height, width) of each image at the level.
        channels: Of every image.
        channel_names: By the first image, whose order all must have that use the same names; None if not stated.
        has_gaps: Whether any image can say that pixels are missing.
        scales: Microns or ground units per pixel of each image at the level, and which of them; None if not stated.
        places: Where the level's pixels of each image lie on the ground; None if not stated.

    Raises:
        FileNotFoundError: A file that is missing.
        ValueError: No pairs, a file that cannot be read, a mask of another size than its image, different numbers of
            channels, a level an image has not, or a size below 1.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        level: int = 0,
        num_classes: int | None = None,
        labels: LabelMap | None = None,
        alpha: Alpha = "white",
        bands: Sequence[int] | None = None,
        context_size: Sequence[int] | None = None,
    ) -> None:
        if not pairs:
            raise ValueError("expected one pair of image and mask or more, got none")
        if context_size is not None and min(context_size) < 1:
            raise ValueError(f"expected context_size >= 1, got {context_size=}")
        self.images = [Path(image) for image, _ in pairs]
        self.masks = [mask if mask is None or isinstance(mask, VectorMask) else Path(mask) for _, mask in pairs]
        self.level = level
        self.num_classes = num_classes
        self.labels = labels
        self.alpha = alpha
        self.bands = bands
        self._open: OrderedDict[tuple[bool, int], ImageReader] = OrderedDict()
        self.sizes: list[tuple[int, int]] = []
        self.scales: list[tuple[float, str] | None] = []
        self.places: list[Georeference | None] = []
        first = self.image(0)
        self.channels, self.channel_names = first.channels, first.channel_names
        self.has_gaps = False
        self._may_be_empty: list[bool] = []
        for number in range(len(pairs)):
            self._add(number)
        self.context_size = None if context_size is None else (context_size[0], context_size[1])
        self.overviews = [] if self.context_size is None else self._read_overviews(self.context_size)

    def __len__(self) -> int:
        return len(self.images)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def image(self, number: int) -> ImageReader:
        """The reader of an image; it may be closed when another is asked for."""
        return self._reader(False, number)

    def close(self) -> None:
        """Close all files; they open again when needed."""
        while self._open:
            self._open.popitem()[1].close()

    def read_image(self, number: int, y: int, x: int, height: int, width: int) -> Pixels:
        """A window of an image at the level, missing values marked; see `ImageReader.read_masked`."""
        return self.image(number).read_masked(y, x, height, width, self.level)

    def read_labels(self, number: int, y: int, x: int, height: int, width: int) -> Pixels:
        """A window of a mask, in pixels of the image's level.

        Returns:
            (height, width) uint8; 255 everywhere without a mask.

        Raises:
            ValueError: A label that is no class; the mask is named.
        """
        if self.masks[number] is None:
            return np.full((height, width), IGNORED, np.uint8)
        mask = self._reader(True, number)
        labels, rows, columns = self._sampled(mask, number, (y, x, height, width))
        if self.labels is not None:
            return self.labels.apply(labels, str(self.masks[number]), mask.nodata)
        labels, is_unknown = mark_ignored(labels[..., 0], mask.nodata, self.num_classes, mask.name)
        if is_unknown.any():
            row, column = np.argwhere(is_unknown)[0]
            limit = IGNORED if self.num_classes is None else self.num_classes
            raise ValueError(
                f"expected labels 0..{limit - 1} (or 255, ignored) in {str(self.masks[number])!r}, got "
                f"{labels[row, column]} at row {rows[row]}, column {columns[column]}"
            )
        return labels.astype(np.uint8)

    def read_measured_labels(self, number: int, y: int, x: int, height: int, width: int) -> Pixels:
        """The same as ``read_labels``, and 255 where the image, which is read only if there are labels, is empty."""
        labels = self.read_labels(number, y, x, height, width)
        if self._may_be_empty[number] and (labels != IGNORED).any():
            labels = np.where(is_empty(self.read_image(number, y, x, height, width)), np.uint8(IGNORED), labels)
        return labels

    def _sampled(
        self, mask: ImageReader, number: int, window: tuple[int, int, int, int]
    ) -> tuple[Pixels, Pixels, Pixels]:
        """Labels (height, width, C) of a window of the image's level, and their rows and columns in the mask."""
        y, x, height, width = window
        if (mask.height, mask.width) == self.sizes[number]:
            labels = mask.read_masked(y, x, height, width)
            return labels, np.arange(y, y + height), np.arange(x, x + width)
        rows, columns = (
            nearest(start, start + length, full, here)
            for start, length, full, here in zip(
                (y, x), (height, width), (mask.height, mask.width), self.sizes[number], strict=True
            )
        )
        near = mask.read_masked(rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
        return near[np.ix_(rows - rows[0], columns - columns[0])], rows, columns

    def _reader(self, is_mask: bool, number: int) -> ImageReader:
        key = is_mask, number
        reader = self._open.pop(key, None)
        if reader is None:
            path = self.masks[number] if is_mask else self.images[number]
            if path is None:
                raise ValueError(f"expected a mask for {str(self.images[number])!r}")
            if isinstance(path, VectorMask):
                reader = path.open()
            elif is_mask:
                opened = open_mask if self.labels is None else self.labels.open
                reader = opened(path, cache_bytes=_CACHE_BYTES)
            else:
                reader = open_image(path, alpha=self.alpha, cache_bytes=_CACHE_BYTES, bands=self.bands)
        self._open[key] = reader
        while len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)[1].close()
        return reader

    def _read_overviews(self, size: tuple[int, int]) -> list[Pixels]:
        # NOTE: at once and not by each loader process when it needs one: a large image without a pyramid takes long
        logger.info("reading %d images for their overviews", len(self))
        overviews = []
        for number in range(len(self)):
            image = self.image(number)
            overviews.append(read_overview(image, size).permute(1, 2, 0).numpy() / np.float32(unit(image.dtype)))
        return overviews

    def _add(self, number: int) -> None:
        image = self.image(number)
        if not 0 <= self.level < len(image.levels):
            raise ValueError(f"expected level in 0..{len(image.levels) - 1} of {image.name!r}, got level={self.level}")
        self.sizes.append((image.levels[self.level].height, image.levels[self.level].width))
        self.has_gaps |= image.has_gaps
        self._may_be_empty.append(image.has_gaps or image.dtype.kind == "f")
        place = image.georeference
        self.places.append(place and place.of_window(0, 0, image.pixels_across(self.level)))
        mpp, unit_of_mpp = image.mpp, image.mpp_unit
        self.scales.append((mpp * image.levels[self.level].downsample, unit_of_mpp) if mpp and unit_of_mpp else None)
        if image.channels != self.channels:
            raise ValueError(
                f"expected {self.channels} channel(s) as in {str(self.images[0])!r}, got {image.channels} in "
                f"{image.name!r}"
            )
        check_same_order(self.channel_names, image)
        if self.masks[number] is None:
            return
        size = image.height, image.width
        mask = self._reader(True, number)
        if (mask.height, mask.width) not in (size, self.sizes[number]):
            raise ValueError(
                f"expected a mask of its image's size {size[0]} × {size[1]} ({image.name!r}), got "
                f"{mask.height} × {mask.width} in {mask.name!r}"
            )
        check_same_place(mask, image)


class ClassIndex:
    """How many pixels of each class each block of some regions holds; built in one pass over the masks.

    Pixels of an image that hold no data have no class; images that can say so are read, too.

    This is what drawing windows balanced by class needs to know of huge masks.

    Args:
        sources: Images and masks.
        regions: Which parts of them.

    Attributes:
        counts: (256,) int64: labelled pixels of each class, the last those that are ignored or empty.
        present: Classes that occur.
    """

    def __init__(self, sources: ImageSources, regions: Sequence[Region]) -> None:
        self.regions = list(regions)
        self.counts = np.zeros(IGNORED + 1, np.int64)
        found: dict[int, list[tuple[Any, Any]]] = {}
        for number, (source, area) in enumerate(self.regions):
            for y in range(0, area.height, _CHUNK):
                for x in range(0, area.width, _CHUNK):
                    size = min(_CHUNK, area.height - y), min(_CHUNK, area.width - x)
                    labels = sources.read_measured_labels(source, area.y + y, area.x + x, *size)
                    self.counts[IGNORED] += int((labels == IGNORED).sum())
                    for label, blocks, amounts in _count(labels):
                        corners = blocks * _BLOCK + (y, x)
                        rows = np.column_stack([np.full(len(corners), number), corners]).astype(np.int32)
                        found.setdefault(label, []).append((rows, amounts))
        self._blocks: dict[int, Any] = {}
        self._ends: dict[int, Any] = {}
        for label, parts in found.items():
            self._blocks[label] = np.concatenate([rows for rows, _ in parts])
            self._ends[label] = np.cumsum(np.concatenate([amounts for _, amounts in parts]))
            self.counts[label] = self._ends[label][-1]
        self.present = sorted(found)

    def draw(self, rng: np.random.Generator, sources: ImageSources) -> tuple[int, int, int]:
        """A pixel: any of the classes present with equal chance, then any of that class's pixels with equal chance.

        Args:
            rng: Decides.
            sources: Those the index was built of.

        Returns:
            (number of the region, row, column), in pixels of the image.
        """
        label = self.present[int(rng.integers(len(self.present)))]
        rank = int(rng.integers(self.counts[label]))
        entry = int(np.searchsorted(self._ends[label], rank, side="right"))
        number, y, x = (int(value) for value in self._blocks[label][entry])
        source, area = self.regions[number]
        size = min(_BLOCK, area.height - y), min(_BLOCK, area.width - x)
        labels = sources.read_measured_labels(source, area.y + y, area.x + x, *size)
        before = int(self._ends[label][entry - 1]) if entry else 0
        row, column = divmod(int(np.flatnonzero(labels == label)[rank - before]), size[1])
        return number, area.y + y + row, area.x + x + column


def _count(labels: Any) -> list[tuple[int, Any, Any]]:
    """(class, blocks (n, 2) by row and column, pixels (n,)) of a chunk."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    for row in range(-(-labels.shape[0] // _BLOCK)):
        for column in range(-(-labels.shape[1] // _BLOCK)):
            block = labels[row * _BLOCK : (row + 1) * _BLOCK, column * _BLOCK : (column + 1) * _BLOCK]
            first = int(block[0, 0])
            if (block == first).all():  # most blocks of most masks: many times faster than counting
                counts = {first: block.size}
            else:
                table = np.bincount(block.ravel(), minlength=IGNORED)
                counts = {int(label): int(table[label]) for label in np.flatnonzero(table)}
            for label, amount in counts.items():
                if label != IGNORED:
                    found.setdefault(label, []).append((row, column, amount))
    tables = {label: np.array(rows, np.int64) for label, rows in found.items()}
    return [(label, table[:, :2], table[:, 2]) for label, table in tables.items()]


def whole_images(sources: ImageSources) -> list[Region]:
    """A region for each image: all of it."""
    return [(number, Block(0, 0, height, width)) for number, (height, width) in enumerate(sources.sizes)]
