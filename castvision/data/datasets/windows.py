"""Windows of images that do not fit in memory, as a torch data set: at random, balanced by class, or in a grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from castvision.data.datasets.batch import ENDLESS, Batch, Sample
from castvision.data.datasets.regions import Block, Region
from castvision.data.datasets.samples import Transform
from castvision.data.datasets.sources import ClassIndex, ImageSources, whole_images
from castvision.data.reading.pixels import is_empty
from castvision.data.transforms.statistics import ChannelStatistics
from castvision.data.transforms.symmetries import Symmetry
from castvision.ignored import IGNORED


class WindowDataset(Dataset[Sample]):
    """Windows and their labels by index: (image (C, size, size) float32, mask (size, size) int64 with 255 = ignored).

    A third element holds what a model is told beside the window, turned along with it. Where there can be gaps (beyond
    a region, or no data), and in windows with NaN: ``pixel_mask`` (size, size) bool, True where a pixel is real. Where
    the sources keep
    overviews, for a `castvision.models.ContextSegmenter`: ``context``, the overview of its whole image
    (C, *context_size), normalised as the window, and ``window`` (4,), its top, left, height and width as fractions of
    the image.

    A window never leaves its region: what lies beyond is 0 in the image and 255 in the mask. Pixels without data (see
    `castvision.data.reading.pixels`) are 0 and 255 as well. Random windows are endless: seed and index decide
    everything, so an epoch is a range of indices no other epoch has.

    Args:
        sources: Images and masks, and the level that is read.
        size: Height and width of a window.
        statistics: How pixels become a model's input; None for the dtype's scale alone.
        sampling: "random", or "grid": all windows from the upper left corner on.
        stride: Of the grid; None for ``size``.
        balance: "class": a random window holds a pixel whose class is any of those present with equal chance, at any
            position in the window; None: any window with equal chance.
        regions: (number of the source, block) that windows come from; None for all of every image.
        symmetries: Turn or mirror random windows by one of the 8 symmetries of the square.
        transform: Its ``pair`` takes pixels (a masked array where some are missing) and labels where they lie in the
            region, and gives the item, in place of normalisation and padding.
        seed: Another seed is another set.

    Attributes:
        index: Where the classes are, if windows are balanced.
        has_gaps: Whether a window can hold pixels that are not real.

    Raises:
        ValueError: An unknown sampling or balance, options that contradict each other, a number out of range, balance
            without a single labelled pixel, or a change of windows that their surroundings cannot follow.
    """

    def __init__(  # the options of a data set
        self,
        sources: ImageSources,
        size: int,
        statistics: ChannelStatistics | None = None,
        *,
        sampling: Literal["random", "grid"] = "random",
        stride: int | None = None,
        balance: Literal["class"] | None = None,
        regions: Sequence[Region] | None = None,
        symmetries: bool = False,
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        _check_options(sampling, balance, stride, symmetries)
        if size < 1 or (stride is not None and stride < 1):
            raise ValueError(f"expected size and stride >= 1, got {size=}, {stride=}")
        _check_context(sources.context_size, symmetries, transform)
        self.sources, self.size, self.seed = sources, size, seed
        self.statistics = statistics or ChannelStatistics((0.0,), (1.0,))
        self.sampling, self.symmetries, self.transform = sampling, symmetries, transform
        given = whole_images(sources) if regions is None else regions
        self.regions = [(source, Block(*area)) for source, area in given]
        _check_regions(sources, self.regions)
        self.index = ClassIndex(sources, self.regions) if balance == "class" else None
        if self.index is not None and not self.index.present:
            raise ValueError("expected labelled pixels to balance windows by class, found none in the masks")
        self._areas = np.cumsum([area.height * area.width for _, area in self.regions])
        self._corners = _grid(self.regions, size, stride or size) if sampling == "grid" else None
        self.has_gaps = sources.has_gaps or _hang_over(self.regions, size, stride or size, sampling)
        sources.close()

    def __len__(self) -> int:
        return ENDLESS if self._corners is None else len(self._corners)

    def __getitem__(self, index: int) -> Sample:
        """A window.

        Raises:
            IndexError: Beyond the end.
            ValueError: A file that cannot be read, or an unknown label.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"expected an index in 0..{len(self) - 1}, got {index}")
        symmetry = Symmetry()
        if self._corners is None:
            rng = np.random.default_rng((self.seed, index))
            number, y, x = self._random_corner(rng)
            if self.symmetries:
                is_flipped, turns = divmod(int(rng.integers(8)), 4)
                symmetry = Symmetry(turns, bool(is_flipped))
        else:
            number, y, x = (int(value) for value in self._corners[index])
        image, mask, extras, _ = Batch(*self._read(number, y, x))
        image, mask = symmetry.of(image).contiguous(), symmetry.of(mask).contiguous()
        told = {name: symmetry.of(values).contiguous() for name, values in extras.items()}
        if self.sources.context_size is not None:
            told |= self._surroundings(self.regions[number][0], (y, x), symmetry)
        return (image, mask, told) if told else (image, mask)

    def _surroundings(self, source: int, corner: tuple[int, int], symmetry: Symmetry) -> dict[str, Tensor]:
        height, width = self.sources.sizes[source]
        window = torch.tensor([corner[0] / height, corner[1] / width, self.size / height, self.size / width])
        context = symmetry.of(self.statistics.normalise(self.sources.overviews[source]))
        return {"context": context.contiguous(), "window": symmetry.of_window(window)}

    def keep_labelled(self) -> WindowDataset:
        """Leave out windows of the grid without a labelled pixel that holds data; reads all their masks once.

        Raises:
            ValueError: Random windows.
        """
        if self._corners is None:
            raise ValueError("expected a grid of windows, got random ones")
        kept = []
        for corner in self._corners:
            number, y, x = (int(value) for value in corner)
            source, inside = self._inside(number, y, x)
            kept.append(bool((self.sources.read_measured_labels(source, *inside) != IGNORED).any()))
        self._corners = self._corners[np.array(kept, bool)]
        self.sources.close()
        return self

    def random_place(self, rng: np.random.Generator) -> tuple[int, Block]:
        """Where a random window lies: number of the source, and the part of it inside the region.

        Args:
            rng: Decides.
        """
        return self._inside(*self._random_corner(rng))

    def _random_corner(self, rng: np.random.Generator) -> tuple[int, int, int]:
        """(number of the region, row, column) of a window that stays inside its region if it can."""
        if self.index is not None:
            number, row, column = self.index.draw(rng, self.sources)
            # NOTE: anywhere in the window; in its middle, a model that knows positions would learn to expect it there.
            y, x = row - int(rng.integers(self.size)), column - int(rng.integers(self.size))
        else:
            number = int(np.searchsorted(self._areas, rng.integers(self._areas[-1]), side="right"))
            area = self.regions[number][1]
            y = area.y + int(rng.integers(max(area.height - self.size, 0) + 1))
            x = area.x + int(rng.integers(max(area.width - self.size, 0) + 1))
        area = self.regions[number][1]
        y = max(min(y, area.y + area.height - self.size), area.y)
        x = max(min(x, area.x + area.width - self.size), area.x)
        return number, y, x

    def _inside(self, number: int, y: int, x: int) -> tuple[int, Block]:
        """The part of a window that lies in its region."""
        source, area = self.regions[number]
        bottom, right = min(y + self.size, area.y + area.height), min(x + self.size, area.x + area.width)
        return source, Block(y, x, bottom - y, right - x)

    def _read(self, number: int, y: int, x: int) -> Sample:
        source, inside = self._inside(number, y, x)
        pixels = self.sources.read_image(source, *inside)
        labels = self.sources.read_labels(source, *inside)
        missing = is_empty(pixels)
        labels = np.where(missing, np.uint8(IGNORED), labels)
        if self.transform is not None:
            return self.transform.pair(pixels, labels)
        image = torch.zeros(self.sources.channels, self.size, self.size)
        mask = torch.full((self.size, self.size), IGNORED)
        image[:, : inside.height, : inside.width] = self.statistics.normalise(pixels)
        mask[: inside.height, : inside.width] = torch.from_numpy(labels.astype(np.int64))
        if not (self.has_gaps or missing.any()):
            return image, mask
        is_real = torch.zeros(self.size, self.size, dtype=torch.bool)
        here = is_real[: inside.height, : inside.width]
        here[:] = torch.from_numpy(~missing)
        return image, mask, {"pixel_mask": is_real}


def _check_options(sampling: str, balance: str | None, stride: int | None, symmetries: bool) -> None:
    if sampling not in ("random", "grid") or balance not in (None, "class"):
        raise ValueError(
            f"expected sampling 'random' or 'grid' and balance 'class' or None, got {sampling=}, {balance=}"
        )
    if sampling == "grid" and (balance is not None or symmetries):
        raise ValueError(f"expected balance and symmetries for random windows only, got {balance=}, {symmetries=}")
    if sampling == "random" and stride is not None:
        raise ValueError(f"expected a stride for sampling='grid' only, got {stride=}")


def _check_context(context_size: tuple[int, int] | None, symmetries: bool, transform: Transform | None) -> None:
    if context_size is None:
        return
    if transform is not None:
        raise ValueError("expected no transform of windows with context: the surroundings would not follow it")
    if symmetries and context_size[0] != context_size[1]:
        raise ValueError(f"expected a square context_size with symmetries (quarter turns), got {context_size=}")


def _check_regions(sources: ImageSources, regions: Sequence[Region]) -> None:
    if not regions:
        raise ValueError("expected one region or more, got none")
    for source, area in regions:
        height, width = sources.sizes[source]
        if not (0 <= area.y < area.y + area.height <= height and 0 <= area.x < area.x + area.width <= width):
            raise ValueError(
                f"expected regions inside the {height} × {width} pixels of {str(sources.images[source])!r}, got {area}"
            )


def _hang_over(regions: Sequence[Region], size: int, stride: int, sampling: str) -> bool:
    """Whether any window reaches beyond its region."""
    sides = {side for _, area in regions for side in (area.height, area.width)}
    return any(side < size or (sampling == "grid" and (side - size) % stride) for side in sides)


def _grid(regions: Sequence[Region], size: int, stride: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """(windows, 3): region, row, column; the last row and column of windows may hang over their region's border."""
    corners = [
        (number, area.y + y, area.x + x)
        for number, (_, area) in enumerate(regions)
        for y in range(0, max(area.height - size, 0) + stride, stride)
        for x in range(0, max(area.width - size, 0) + stride, stride)
        if y < area.height and x < area.width
    ]
    return np.array(corners, np.int32).reshape(-1, 3)
