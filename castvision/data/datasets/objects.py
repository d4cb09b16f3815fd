"""Images with a mask of numbered objects each and, if there are several classes of them, a mask of classes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from castvision.data.datasets.leaks import check_apart
from castvision.data.datasets.samples import PixelDataset, check_files, open_pixels, to_channels, whole_pixels
from castvision.data.datasets.segmentation import SPLITS, match_folders
from castvision.data.reading.agreement import check_same_place, check_same_size
from castvision.data.reading.labels import LabelMap, is_background, names_up_to, read_class_names
from castvision.data.reading.numbers import numbers_in
from castvision.data.reading.opening import open_mask
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.datasets.batch import Sample
    from castvision.data.reading.pixels import Pixels
    from castvision.data.reading.reader import ImageReader
    from castvision.data.transforms.augmentation import SampleTransform

MOST_OBJECTS = 65535
"""In one image: numbers are resampled as 16 bits."""


@dataclass(frozen=True)
class NumberedImage:
    """An image, its mask of objects, and its mask of classes; None where all objects have one class."""

    image: Path
    objects: Path
    mask: Path | None


class ObjectDataset(PixelDataset):
    """Items are (image, classes, extras, truth), truth with "objects": (height, width) int64 numbers, 0 = no object.

    Classes are (height, width) int64 with 255 = ignored. The transform must have ``with_objects``, see
    `castvision.data.transforms.augmentation.SampleTransform`.

    Args:
        images: See `find_objects`.
        labels: From the labels in masks of classes to classes; without such masks, class 1 is an object's.
        in_chans: See `PixelDataset`.
    """

    def __init__(self, images: Sequence[NumberedImage], labels: LabelMap, *, in_chans: int | None = None) -> None:
        self.images, self.labels, self.in_chans = list(images), labels, in_chans

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.images[index].image)

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """See `PixelDataset.read`."""
        pixels, mask, _ = self.read_objects(index)
        return pixels, mask

    def read_objects(self, index: int) -> tuple[Pixels, Pixels, Pixels]:
        """An image as stored.

        Returns:
            Its pixels, (height, width) uint8 classes, and (height, width) uint16 numbers of objects, 1, 2, 3, …

        Raises:
            ValueError: Pixels or masks cannot be used, or too many objects; the message names the file.
        """
        entry = self.images[index]
        with open_pixels(entry.image, self.in_chans, self.bands) as image, open_mask(entry.objects) as reader:
            check_same_place(reader, image)
            pixels = to_channels(whole_pixels(image), self.in_chans, image.name)
            numbers, is_unknown = numbers_in(reader, 0, 0, reader.height, reader.width)
            mask = None if entry.mask is None else self._classes(entry.mask, image)
        check_same_size(pixels, numbers, str(entry.image), str(entry.objects))
        found, compact = np.unique(numbers, return_inverse=True)
        compact = compact.reshape(numbers.shape) + int(found[0] != 0)
        if compact.max() > MOST_OBJECTS:
            raise ValueError(
                f"expected at most {MOST_OBJECTS:,} objects in an image, got {compact.max():,} in "
                f"{str(entry.objects)!r}; cut the image into several"
            )
        if mask is None:
            mask = (compact > 0).astype(np.uint8)
        else:
            check_same_size(pixels, mask, str(entry.image), str(entry.mask))
        mask = np.where(is_unknown, np.uint8(IGNORED), mask)
        return pixels, mask, compact.astype(np.uint16)

    def _classes(self, path: Path, image: ImageReader) -> Pixels:
        with self.labels.open(path) as mask:
            check_same_place(mask, image)
            return self.labels.read_all(mask)

    def __getitem__(self, index: int) -> Sample:
        """One sample as tensors."""
        if self.transform is None:
            raise ValueError("expected a transform of a data set of objects, got none")
        transform: SampleTransform = self.transform  # type: ignore[assignment]  # the only one that takes objects
        return transform.with_objects(*self.read_objects(index))


def find_objects(root: Path) -> dict[str, list[NumberedImage]]:
    """Find the images of each split.

    Args:
        root: Holds ``train/images`` and ``train/objects`` and, if objects have several classes, ``train/masks``, with
            files of the same names; ``val`` alike and, if there is one, ``test``.

    Returns:
        Images by split.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: An image without its masks, or a mask without its image; one image in two splits.
    """
    found: dict[str, list[NumberedImage]] = {}
    for split in SPLITS:
        folder = root / split
        if split == "test" and not folder.is_dir():
            continue
        pairs = match_folders(folder / "images", folder / "objects")
        masks: list[Path | None] = [None] * len(pairs)
        if (folder / "masks").is_dir():
            masks = [pair.mask for pair in match_folders(folder / "images", folder / "masks")]
        found[split] = [NumberedImage(one.image, one.mask, mask) for one, mask in zip(pairs, masks, strict=True)]
    if len({entry.mask is None for entries in found.values() for entry in entries}) > 1:
        raise ValueError(f"expected masks of classes in every split of {str(root)!r} or in none")
    check_files([path for some in found.values() for one in some for path in (one.image, one.objects)])
    check_apart({split: [entry.image for entry in entries] for split, entries in found.items()})
    return found


def open_objects(
    root: str | Path,
    class_names: Sequence[str] | None = None,
    label_map: Mapping[int | str, int | str] | None = None,
) -> tuple[dict[str, ObjectDataset], LabelMap]:
    """Images with masks of objects, by split, and what the labels of their masks of classes mean.

    Args:
        root: See `find_objects`.
        class_names: In the order of the labels; None = those of ``classes.txt``, or "background" and "object".
        label_map: See `LabelMap`.

    Raises:
        FileNotFoundError: See `find_objects`.
        ValueError: See there, and `LabelMap`; or, without masks of classes, other than two classes or a background
            that is the second of them.
    """
    found = find_objects(Path(root))
    names = class_names or read_class_names(Path(root) / "classes.txt") or names_up_to(1)
    if len(names) != 2 and any(entry.mask is None for entries in found.values() for entry in entries):
        raise ValueError(
            f"expected masks of classes beside those of objects for {len(names)} classes, found none in "
            f"{str(root)!r}; add train/masks and val/masks, or name a background and one class"
        )
    if len(names) == 2 and is_background(names[1]) and not is_background(names[0]):
        raise ValueError(
            f"expected the background first, as the label 0, got the classes {', '.join(names)}; name them "
            f"{names[1]}, {names[0]}"
        )
    labels = LabelMap(names, label_map)
    return {split: ObjectDataset(entries, labels) for split, entries in found.items()}, labels
