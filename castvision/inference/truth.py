"""Known answers of an evaluation: the folders of classes, what labels in masks mean, labels that no class has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from castvision.data.reading.folders import nfc
from castvision.data.reading.labels import ClassReader, LabelMap, check_classes_found, classes_near, map_by_names
from castvision.errors import FAILURES
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from castvision.data.reading.reader import ImageReader

    Truth = ImageReader | ClassReader

_BAND_PIXELS = 1 << 24


def folders_as_classes(images: Mapping[Path, str], class_names: Sequence[str]) -> dict[Path, int]:
    """The class of each image, by its folder.

    Args:
        images: Each image and its name, as `castvision.inference.files.find_images` gives them.
        class_names: The model's.

    Raises:
        ValueError: A folder that is no class.
    """
    folders = {path: name.split("/")[0] if "/" in name else path.parent.name for path, name in images.items()}
    own = {nfc(name): name for name in class_names}
    folders = {path: own.get(nfc(folder), folder) for path, folder in folders.items()}
    unknown = sorted(set(folders.values()) - set(class_names))
    if unknown:
        known = ", ".join(class_names[:10])
        raise ValueError(f"expected one folder for each class ({known}), found {', '.join(unknown[:5])}")
    return {path: class_names.index(folder) for path, folder in folders.items()}


def meaning_of_labels(
    masks: Iterable[Path],
    class_names: Sequence[str],
    given: Mapping[int | str, int | str] | None,
    remembered: Mapping[str, int | str] | None,
) -> LabelMap:
    """What labels mean: as it is given, by the list of classes beside the folder of masks, or else by the checkpoint.

    Args:
        masks: Files.
        class_names: The model's.
        given: Of the command.
        remembered: Of the checkpoint.

    Raises:
        ValueError: A map that does not fit the classes.
    """
    if given is not None:
        return LabelMap(class_names, given)
    for folder in {path.parent: None for path in masks}:
        listed = classes_near(folder)
        if listed is not None:
            found = map_by_names(listed[0], class_names, remembered, listed[1])
            if found is not None:
                return LabelMap(class_names, found)
    return LabelMap(class_names, None if remembered is None else dict(remembered.items()))


def check_two_classes(masks: Iterable[Path], labels: LabelMap) -> None:
    """Refuse masks of one class and 255, before any work; reads on until two classes are found.

    Raises:
        ValueError: There is no second class.
    """
    if labels.mapping is not None:
        return
    counts = np.zeros(IGNORED + 1, np.int64)
    for path in masks:
        try:
            with ClassReader(path, labels) as mask:
                for y, rows in bands_of(mask):
                    counts += np.bincount(mask.read(y, 0, rows, mask.width).ravel(), minlength=len(counts))
                    if np.count_nonzero(counts[:IGNORED]) > 1:
                        return
        except FAILURES:
            continue  # said when its image's turn comes
    try:
        check_classes_found(counts, labels.class_names, "the masks")
    except ValueError as error:
        raise ValueError(f"{error} (--label-map '{{0: 0, 255: 1}}', or '{{0: 0, 255: ignore}}')") from error


def check_labels(mask: Truth, classes: int) -> None:
    """Refuse a mask with labels no class has, before any work.

    Raises:
        ValueError: It names the labels.
    """
    found: set[int] = set()
    for y, rows in bands_of(mask):
        found.update(np.unique(mask.read(y, 0, rows, mask.width)).tolist())
    unknown = sorted(label for label in found if not 0 <= label < classes and label != IGNORED)
    if unknown:
        raise ValueError(
            f"expected labels 0..{classes - 1} and {IGNORED} (ignored) in {mask.name!r}, found {unknown[:10]}; "
            "change the mask, or train with more classes"
        )


def bands_of(mask: Truth) -> list[tuple[int, int]]:
    """(first row, rows) of the parts in which a mask is read."""
    rows = max(1, _BAND_PIXELS // mask.width)
    return [(y, min(rows, mask.height - y)) for y in range(0, mask.height, rows)]
