"""Images with any number of labels each, listed in CSV files."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.datasets.leaks import check_apart, hold_out_images
from castvision.data.datasets.listed import listed_files
from castvision.data.datasets.samples import PixelDataset, check_files, load_pixels
from castvision.data.datasets.segmentation import read_rows
from castvision.data.reading.folders import nfc

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.datasets.samples import Transform
    from castvision.data.reading.pixels import Pixels

_PATH = "path"
_LIST = "labels"
_MARKS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True)
class LabelTable:
    """Labels of a list of images.

    Attributes:
        images: Files.
        class_names: In the order of the targets' columns.
        targets: (images, classes) float32, 1 = the image has the label, 0 = it has not.
    """

    images: list[Path]
    class_names: list[str]
    targets: np.ndarray[Any, np.dtype[np.float32]] = field(repr=False)


def read_label_table(
    path: str | Path, class_names: Sequence[str] | None = None, *, allow_outside_root: bool = False
) -> LabelTable:
    """Read a list of images and their labels.

    Two forms: the header ``path,NAME1,NAME2,…`` with 0 or 1 in every column, or the header ``path,labels`` with names
    separated by ``;`` (none is allowed). Paths are relative to the list.

    Args:
        path: The CSV file.
        class_names: The classes, in order; None for the columns, or all names of the list in alphabetical order.
        allow_outside_root: Take files from outside the list's folder, too; a list from a stranger may name any file.

    Returns:
        The table.

    Raises:
        FileNotFoundError: No such list, or an image that is missing.
        ValueError: A wrong header, value or name, with the line's number; an image listed twice, or
            outside the list's folder; an empty file.
    """
    path = Path(path)
    rows = list(read_rows(path, (_PATH,)))
    columns = [name for name in rows[0][1] if name != _PATH]
    if not columns:
        raise ValueError(f"{path}, line 1: expected path,{_LIST} or path and one column for each class, got path only")
    marked = _from_names(rows) if columns == [_LIST] else _from_columns(rows, columns)
    if class_names is None:
        class_names = columns if columns != [_LIST] else sorted(set().union(*marked))
    if not class_names:
        raise ValueError(f"expected a label on some line of {str(path)!r}, found none")
    column_of = {nfc(name): column for column, name in enumerate(class_names)}
    if columns != [_LIST] and set(columns) != set(column_of):
        differing = sorted(set(columns) ^ set(column_of))
        raise ValueError(f"{path}, line 1: expected the columns {', '.join(class_names)}, differing: {differing[:8]}")
    targets = np.zeros((len(rows), len(class_names)), dtype=np.float32)
    for number, ((line, _), names) in enumerate(zip(rows, marked, strict=True)):
        for name in names:
            if name not in column_of:
                raise ValueError(f"{line}: unknown label {name!r}; expected some of {', '.join(class_names)}")
            targets[number, column_of[name]] = 1
    names, lines = [row[_PATH] for _, row in rows], [line for line, _ in rows]
    images = listed_files(path.parent, names, lines, None if allow_outside_root else [path.parent])
    _check_unique(rows, images)
    check_files(images)
    return LabelTable(images, list(class_names), targets)


def _from_names(rows: Sequence[tuple[str, Any]]) -> list[list[str]]:
    found = [[nfc(name.strip()) for name in row[_LIST].split(";") if name.strip()] for _, row in rows]
    _check_separators([line for line, _ in rows], found)
    return found


def _check_separators(lines: Sequence[str], found: Sequence[Sequence[str]]) -> None:
    """Refuse names that other names make up, such as "cat|dog" where there is "dog": each mixture would be a class."""
    names = set().union(*found)
    for separator in "|,":
        parts = {name: [part.strip() for part in name.split(separator)] for name in names}
        counts = Counter(part for some in parts.values() for part in {*some})
        for line, some in zip(lines, found, strict=True):
            mixed = [name for name in some if len(parts[name]) > 1 and any(counts[part] > 1 for part in parts[name])]
            if mixed:
                raise ValueError(
                    f"{line}: expected names of labels separated by ';', got {mixed[0]!r}, parts of which are names on "
                    f"other lines; write {';'.join(parts[mixed[0]])!r}"
                )


def _from_columns(rows: Sequence[tuple[str, Any]], columns: Sequence[str]) -> list[list[str]]:
    for line, row in rows:
        for name in columns:
            if row[name].lower() not in _MARKS:
                raise ValueError(f"{line}: expected 0 or 1 in the column {name!r}, got {row[name]!r}")
    return [[name for name in columns if _MARKS[row[name].lower()]] for _, row in rows]


def _check_unique(rows: Sequence[tuple[str, Any]], images: Sequence[Path]) -> None:
    first: dict[str, str] = {}
    for (line, row), image in zip(rows, images, strict=True):
        place = os.path.realpath(image)
        if place in first:
            raise ValueError(f"{line}: {row[_PATH]!r} stands on {first[place]} already; keep one of the lines")
        first[place] = line


class MultiLabelDataset(PixelDataset):
    """Items are (image (C, height, width) float32, labels (classes,) float32 zeros and ones).

    Args:
        table: See `read_label_table`.
        transform: See `PixelDataset`.
        in_chans: See `PixelDataset`.
    """

    def __init__(self, table: LabelTable, *, transform: Transform | None = None, in_chans: int | None = None) -> None:
        self.table = table
        self.transform = transform
        self.in_chans = in_chans

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table.images)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.table.images[index])

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """See `PixelDataset.read`."""
        return load_pixels(self.table.images[index], self.in_chans, self.bands), self.table.targets[index]


def open_label_tables(
    root: str | Path,
    class_names: Sequence[str] | None = None,
    *,
    val_share: float = 0.2,
    seed: int = 0,
    allow_outside_root: bool = False,
) -> tuple[dict[str, MultiLabelDataset], list[str]]:
    """Lists of images and labels by split, and the names of their classes.

    Args:
        root: A folder with ``train.csv``, ``val.csv`` and, if there is one, ``test.csv``; or one CSV file.
        class_names: In order; None = those of the training list.
        val_share: Share of the images held out where there is one list.
        seed: Of that choice.
        allow_outside_root: See `read_label_table`.

    Raises:
        FileNotFoundError: See `read_label_table`.
        ValueError: See there, or one image in two splits.
    """
    root, read = Path(root), partial(read_label_table, allow_outside_root=allow_outside_root)
    if root.suffix.lower() == ".csv":
        table = read(root, class_names)
        tables = {
            split: LabelTable([table.images[index] for index in indices], table.class_names, table.targets[indices])
            for split, indices in hold_out_images(table.images, val_share, seed)
        }
    else:
        train = read(root / "train.csv", class_names)
        others = {split: root / f"{split}.csv" for split in ("val", "test")}
        found = {split: path for split, path in others.items() if split == "val" or path.is_file()}
        tables = {"train": train, **{split: read(path, train.class_names) for split, path in found.items()}}
        check_apart({split: table.images for split, table in tables.items()})
    return {split: MultiLabelDataset(table) for split, table in tables.items()}, tables["train"].class_names
