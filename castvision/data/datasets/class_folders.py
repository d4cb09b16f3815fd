"""One folder of images for each class."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from castvision.data.datasets.leaks import check_apart
from castvision.data.reading.folders import is_stray, nfc, walk_images
from castvision.data.reading.opening import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)


def read_rgb(path: str) -> Image.Image:
    """A picture of 8 bits, as torchvision's ``ImageFolder`` reads it."""
    with Image.open(path) as image:
        return image.convert("RGB")


class ClassFolders:
    """torchvision's ``ImageFolder`` with our walk: what programs leave beside images is neither image nor class.

    Items are (image, label). It is none of torchvision's classes, whose import takes longer than listing most folders.

    Args:
        root: The folder of the classes' folders.
        transform: Of what ``loader`` reads; None = none.
        loader: From a path to an image.
        allow_empty: Let a class have no images.

    Attributes:
        classes: Names of the folders, in composed Unicode and its order.
        class_to_idx: The label of each.
        samples: (path, label) of every image, class by class.

    Raises:
        FileNotFoundError: No class folder, or one without images.
        ValueError: Two folders of one name, or a name whose bytes are no UTF-8.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[Any], Any] | None = None,
        loader: Callable[[str], Any] = read_rgb,
        *,
        allow_empty: bool = False,
    ) -> None:
        self.root, self.transform, self.loader = str(root), transform, loader
        self.classes = class_names_in(Path(root))
        self.class_to_idx = {name: label for label, name in enumerate(self.classes)}
        self.samples = _listed(Path(root), self.class_to_idx, allow_empty)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """An image and its label."""
        path, label = self.samples[index]
        image = self.loader(path)
        return image if self.transform is None else self.transform(image), label


def class_names_in(folder: Path) -> list[str]:
    """Names of the classes' folders, in order.

    Raises:
        FileNotFoundError: There is none.
        ValueError: Two of one name, or a name whose bytes are no UTF-8.
    """
    with os.scandir(folder) as entries:
        inside = list(entries)
    names = sorted(nfc(one.name) for one in inside if one.is_dir() and not is_stray(one.name, is_folder=True))
    loose = [one.name for one in inside if not one.is_dir() and Path(one.name).suffix.lower() in IMAGE_SUFFIXES]
    loose = [name for name in loose if not is_stray(name)]
    if loose:
        logger.warning("%s: %d image(s) in no class folder, such as %s", folder, len(loose), loose[0])
    if not names:
        raise FileNotFoundError(f"expected a folder for each class in {str(folder)!r}, found none")
    for name, following in zip(names, [*names[1:], ""], strict=True):
        if name == following or not name.isprintable():
            raise ValueError(
                f"expected class folders of different, printable names (UTF-8) in {str(folder)!r}, got {name!r}; "
                "rename it"
            )
    return names


def _listed(root: Path, label_of: Mapping[str, int], allow_empty: bool) -> list[tuple[str, int]]:
    folder_of = {nfc(folder): root / folder for folder in os.listdir(root)}
    images = {name: walk_images(folder_of[name]) for name in label_of}
    empty = [name for name, found in images.items() if not found]
    if empty and not allow_empty:
        raise FileNotFoundError(f"found no image for the classes {', '.join(empty)} in {str(root)!r}")
    return [(str(path), label_of[name]) for name, found in images.items() for path in found]


def open_class_folders(root: str | Path) -> dict[str, ClassFolders]:
    """``ROOT/train/CLASS/*.png``, ``ROOT/val/CLASS/*.png`` and, if there is one, ``ROOT/test``.

    Returns:
        By split: "train", "val" and, if it is there, "test"; all of the same classes.

    Raises:
        FileNotFoundError: A folder that is missing, or a class without images.
        ValueError: Splits with different classes, one image in two splits, or an empty file.
    """
    splits = ["train", "val", *(["test"] if (Path(root) / "test").is_dir() else [])]
    folders = {split: _open_split(Path(root) / split) for split in splits}
    names = folders["train"].classes
    for split, folder in folders.items():
        if folder.classes != names:
            differing = sorted(set(folder.classes) ^ set(names))
            raise ValueError(
                f"expected the same classes in train and {split} of {str(root)!r}, differing: {differing[:8]}"
            )
    check_apart({split: [Path(path) for path, _ in folder.samples] for split, folder in folders.items()})
    return folders


def _open_split(folder: Path) -> ClassFolders:
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder {str(folder)!r} with one folder for each class, found none")
    images = ClassFolders(folder)
    for path, _ in images.samples:
        if Path(path).stat().st_size == 0:
            raise ValueError(f"the image {path!r} is an empty file; remove it or fetch it again")
    return images
