"""One folder of images for each class."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchvision.datasets import ImageFolder

from castvision.data.reading.folders import is_stray, nfc, walk_images
from castvision.data.reading.opening import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)


class ClassFolders(ImageFolder):  # type: ignore[misc]  # torchvision ships no types
    """torchvision's ``ImageFolder`` with our walk: what programs leave beside images is neither image nor class.

    Class names are those of the folders, in composed Unicode and its order. Arguments are ``ImageFolder``'s.

    Raises:
        FileNotFoundError: No class folder, or one without images.
        ValueError: Two folders of one name, or a name whose bytes are no UTF-8.
    """

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Names in order, and the label of each."""
        with os.scandir(directory) as entries:
            inside = list(entries)
        names = sorted(nfc(one.name) for one in inside if one.is_dir() and not is_stray(one.name, is_folder=True))
        loose = [one.name for one in inside if not one.is_dir() and Path(one.name).suffix.lower() in IMAGE_SUFFIXES]
        loose = [name for name in loose if not is_stray(name)]
        if loose:
            logger.warning("%s: %d image(s) in no class folder, such as %s", directory, len(loose), loose[0])
        if not names:
            raise FileNotFoundError(f"expected a folder for each class in {str(directory)!r}, found none")
        for name, following in zip(names, [*names[1:], ""], strict=True):
            if name == following or not name.isprintable():
                raise ValueError(
                    f"expected class folders of different, printable names (UTF-8) in {str(directory)!r}, got "
                    f"{name!r}; rename it"
                )
        return names, {name: label for label, name in enumerate(names)}

    @staticmethod
    def make_dataset(directory: str | Path, class_to_idx: Mapping[str, int], **how: Any) -> list[tuple[str, int]]:
        """(path, label) of every image, class by class."""
        is_wanted = how.get("is_valid_file") or bool
        folder_of = {nfc(folder): Path(directory) / folder for folder in os.listdir(directory)}
        samples: list[tuple[str, int]] = []
        empty = []
        for name, label in sorted(class_to_idx.items()):
            images = [path for path in walk_images(folder_of[name]) if is_wanted(str(path))]
            samples += [(str(path), label) for path in images]
            if not images:
                empty.append(name)
        if empty and not how.get("allow_empty"):
            raise FileNotFoundError(f"found no image for the classes {', '.join(empty)} in {str(directory)!r}")
        return samples
