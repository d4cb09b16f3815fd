"""Images with a mask each: which belong together, in folders and lists, and the class of every pixel."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from castvision.data.datasets.checking import spread
from castvision.data.datasets.leaks import check_apart, hold_out_images
from castvision.data.datasets.listed import listed_files
from castvision.data.datasets.samples import PixelDataset, check_files, load_pixels
from castvision.data.reading.folders import images_by_name, nfc
from castvision.data.reading.labels import (
    LabelMap,
    check_same_size,
    mark_ignored,
    names_up_to,
    numbered,
    read_class_names,
)
from castvision.data.reading.opening import IMAGE_SUFFIXES, open_mask
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from castvision.data.datasets.samples import Transform
    from castvision.data.reading.pixels import Pixels

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_LAYOUTS = (
    "ROOT/train/images + ROOT/train/masks (and val, test), ROOT/images/train + ROOT/masks/train (and val, test), "
    "ROOT/images + ROOT/masks, ROOT/train.csv (and val.csv, test.csv), or one CSV file with the columns image,mask"
)


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    image: Path
    mask: Path


class SegmentationDataset(PixelDataset):
    """Items are (image (C, height, width) float32, mask (height, width) int64 with 255 = ignored).

    Args:
        pairs: See `find_pairs`.
        labels: From the masks' labels to classes.
        transform: See `PixelDataset`.
        in_chans: See `PixelDataset`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        labels: LabelMap,
        *,
        transform: Transform | None = None,
        in_chans: int | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.labels = labels
        self.transform = transform
        self.in_chans = in_chans

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.pairs[index].image)

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """See `PixelDataset.read`."""
        pair = self.pairs[index]
        with self.labels.open(pair.mask) as stored:
            pixels = load_pixels(pair.image, self.in_chans, self.bands, [stored])
            mask = self.labels.whole(stored)
        check_same_size(pixels, mask, str(pair.image), str(pair.mask))
        return pixels, mask


def open_pairs(
    root: str | Path,
    class_names: Sequence[str] | None = None,
    label_map: Mapping[int | str, int | str] | None = None,
    *,
    val_share: float = 0.2,
    seed: int = 0,
    allow_outside_root: bool = False,
    checked: int | None = None,
) -> tuple[dict[str, SegmentationDataset], LabelMap]:
    """Images with masks, by split, and what their labels mean.

    Args:
        root: See `find_pairs`.
        class_names: In the order of the labels; None = those of ``classes.txt``, or `found_class_names`.
        label_map: See `LabelMap`.
        val_share: See `find_pairs`.
        seed: See there.
        allow_outside_root: See there.
        checked: Masks of each split, evenly spread, whose labels say which classes there are; None = all.

    Raises:
        FileNotFoundError: See `find_pairs`.
        ValueError: See there, and `LabelMap`.
    """
    folder = Path(root) if Path(root).is_dir() else Path(root).parent
    names = class_names or read_class_names(folder / "classes.txt") or numbered(label_map)
    if names is not None:
        LabelMap(names, label_map)  # what is wrong with it need not wait for files
    pairs = find_pairs(root, val_share=val_share, seed=seed, allow_outside_root=allow_outside_root)
    if names is None:
        names = found_class_names([some[index].mask for some in pairs.values() for index in spread(len(some), checked)])
    labels = LabelMap(names, label_map)
    return {split: SegmentationDataset(some, labels) for split, some in pairs.items()}, labels


def found_class_names(masks: Sequence[Path]) -> list[str]:
    """Names of the classes where nobody gave them, by the labels found.

    Args:
        masks: Of all splits, as many as are to be read.

    Returns:
        `names_up_to` the largest label below 255.

    Raises:
        ValueError: A mask of colours or fractions.
    """
    largest = 0
    for path in masks:
        with open_mask(path) as reader:
            stored = reader.read_masked(0, 0, reader.height, reader.width)[..., 0]
            labels, is_unknown = mark_ignored(stored, reader.nodata, None, str(path))
        known = labels[~is_unknown & (labels != IGNORED)]
        largest = max(largest, int(known.max(initial=0)))
    names = names_up_to(largest)
    logger.info("labels up to %d in %d masks: classes %s", largest, len(masks), ", ".join(names[:8]))
    return names


def find_pairs(
    root: str | Path, *, val_share: float = 0.2, seed: int = 0, allow_outside_root: bool = False
) -> dict[str, list[Pair]]:
    """Find the images and masks of each split.

    Args:
        root: A folder (with ``train``, ``val``, ``test`` inside or beside ``images`` and ``masks``, or with
            ``train.csv``, …), or one CSV file with the columns ``image,mask`` and, if wanted, ``split``. Image and mask
            in folders have the same name but for its suffix; paths in a list are relative to the list.
        val_share: Share of the images held out where no split is named.
        seed: Of that choice.
        allow_outside_root: Take files from outside the list's folder, too; a list from a stranger may name any file.

    Returns:
        Pairs by split: "train", "val" and, if there is one, "test".

    Raises:
        FileNotFoundError: No such layout, or a file that is missing.
        ValueError: An image without mask, a mask without image, an empty file, a wrong line in a list, a listed
            file outside the list's folder, or one image in two splits.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"no such folder or list: {str(root)!r}; expected {_LAYOUTS}")
    is_listed = root.is_file() or (root / "train.csv").is_file()
    found = _from_lists(root, allow_outside_root) if is_listed else _from_folders(root)
    check_files([path for pairs in found.values() for pair in pairs for path in (pair.image, pair.mask)])
    if set(found) == {""}:
        pairs = found[""]
        chosen = hold_out_images([pair.image for pair in pairs], val_share, seed)
        found = {split: [pairs[index] for index in indices] for split, indices in chosen}
    else:
        check_apart({split: [pair.image for pair in pairs] for split, pairs in found.items()})
    for split in ("train", "val"):
        if not found.get(split):
            raise FileNotFoundError(f"found no images for {split!r} in {str(root)!r}; expected {_LAYOUTS}")
    return found


def _from_folders(root: Path) -> dict[str, list[Pair]]:
    for images, masks in (("{split}/images", "{split}/masks"), ("images/{split}", "masks/{split}")):
        folders = {split: (root / images.format(split=split), root / masks.format(split=split)) for split in SPLITS}
        if folders["train"][0].is_dir():
            return {split: match_folders(*both) for split, both in folders.items() if both[0].is_dir()}
    if (root / "images").is_dir():
        return {"": match_folders(root / "images", root / "masks")}
    raise FileNotFoundError(f"found no images and masks in {str(root)!r}; expected {_LAYOUTS}")


def match_folders(images: Path, masks: Path) -> list[Pair]:
    """Pairs of one name in two folders (and their sub-folders), in the order of names.

    Raises:
        FileNotFoundError: A folder is missing.
        ValueError: A name without its twin, or two files of one name.
    """
    image_of, mask_of = images_by_name(images), images_by_name(masks)
    for names, kind, other in ((image_of, "mask", masks), (mask_of, "image", images)):
        lonely = sorted(set(names) ^ (set(image_of) & set(mask_of)))
        if lonely:
            raise ValueError(
                f"{names[lonely[0]].as_posix()!r} has no {kind} {lonely[0]!r}.* in {str(other)!r} "
                f"({len(lonely)} such file(s)); add it, or move the file away"
            )
    if not image_of:
        raise FileNotFoundError(f"found no images ({' '.join(sorted(IMAGE_SUFFIXES))}) in {str(images)!r}")
    return [Pair(image, mask_of[name]) for name, image in image_of.items()]


def _from_lists(root: Path, allow_outside: bool) -> dict[str, list[Pair]]:
    if root.is_dir():
        lists = {split: root / f"{split}.csv" for split in SPLITS}
        return {split: _read_list(path, allow_outside)[""] for split, path in lists.items() if path.is_file()}
    found = _read_list(root, allow_outside)
    if "" in found and len(found) > 1:
        raise ValueError(f"expected a split on every line of {str(root)!r} or on none")
    return found


def _read_list(path: Path, allow_outside: bool) -> dict[str, list[Pair]]:
    found: dict[str, list[Pair]] = {}
    rows = list(read_rows(path, ("image", "mask")))
    lines, inside = [line for line, _ in rows], None if allow_outside else [path.parent]
    images, masks = (
        listed_files(path.parent, [row[column] for _, row in rows], lines, inside) for column in ("image", "mask")
    )
    for (line, row), image, mask in zip(rows, images, masks, strict=True):
        split = "" if path.stem in SPLITS else row.get("split", "")
        if split not in ("", *SPLITS):
            raise ValueError(f"{line}: expected a split train, val or test, got {split!r}")
        found.setdefault(split, []).append(Pair(image, mask))
    return found


def read_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Rows of a CSV file with a header.

    Args:
        path: UTF-8, with commas; names of files may have other bytes, as the file system has them. Columns without a
            name, such as the number of a row, are left out.
        columns: Of files; they must be there, with a value on every line.

    Yields:
        ("FILE, line N", the row's stripped values by column).

    Raises:
        FileNotFoundError: No such file.
        ValueError: No header, a missing column or value, a column twice, too many values, or no line at all; with the
            line's number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such list: {str(path)!r}; check the path")
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    if "\0" in text:
        raise ValueError(f"expected text (UTF-8) in {str(path)!r}, got zero bytes; export the list again")
    reader = csv.DictReader(io.StringIO(text, newline=None))  # also lines that end as on old Macs
    reader.fieldnames = header = [nfc(name.strip()) for name in reader.fieldnames or []]
    if not set(columns) <= set(header):
        raise ValueError(
            f"{path}, line 1: expected the columns {', '.join(columns)}, got {', '.join(header) or 'none'}"
        )
    if twice := sorted(name for name, count in Counter(header).items() if name and count > 1):
        raise ValueError(
            f"{path}, line 1: expected each column once, got {', '.join(twice)} twice; rename or remove one"
        )
    is_empty = True
    for row in reader:
        line = f"{path}, line {reader.line_num}"
        if None in row or None in row.values():
            raise ValueError(f"{line}: expected {len(header)} values ({', '.join(header[:6])}), got another number")
        values = {name: value.strip() for name, value in row.items() if name}
        for name in columns:
            if not values[name]:
                raise ValueError(f"{line}: expected a value in the column {name!r}, got none")
        _check_text(path, line, values, columns)
        is_empty = False
        yield line, values
    if is_empty:
        raise ValueError(f"expected lines below the header of {str(path)!r}, found none")


def _check_text(path: Path, line: str, values: Mapping[str, str], columns: tuple[str, ...]) -> None:
    """Refuse bytes that are no UTF-8, unless they are the name of a file."""
    for name, value in values.items():
        is_text = value.isascii() or not any("\udc80" <= letter <= "\udcff" for letter in value)
        if not is_text and not (name in columns and (path.parent / value).is_file()):
            raise ValueError(
                f"{line}: expected text (UTF-8) in the column {name!r}, got {os.fsencode(value)!r}, and no file is "
                "called so; export the list again"
            )
