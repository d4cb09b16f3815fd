"""Classification on folders of images, one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.datasets import ImageFolder

from castvision.data.reading.pixels import match_channels, to_unit_range
from castvision.data.reading.whole import read_image
from castvision.training.data.data_module import ImageDataModule, Pairs, check_loading

if TYPE_CHECKING:
    from collections.abc import Callable


class ImageFolderDataModule(ImageDataModule):
    """``ROOT/train/CLASS/*.png``, ``ROOT/val/CLASS/*.png`` and, if there is one, ``ROOT/test``; read as RGB.

    Args:
        root: The folder that holds ``train`` and ``val``.
        img_size: Height and width images are brought to.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        augmentation: For ``timm.data.create_transform`` while training, such as ``{re_prob: 0.25}``.
        seed: Of the order of the images.

    Raises:
        FileNotFoundError: A folder that is missing, or a class without images.
        ValueError: Splits with different classes, an empty file, or a number out of range.
    """

    def __init__(  # the signature is the configuration
        self,
        root: str,
        img_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 4,
        augmentation: dict[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        check_loading(batch_size, num_workers)
        self.root = Path(root)
        self._folders = {split: _open_split(self.root / split) for split in ("train", "val")}
        if (self.root / "test").is_dir():
            self._folders["test"] = _open_split(self.root / "test")
        names = self._folders["train"].classes
        for split, folder in self._folders.items():
            if folder.classes != names:
                differing = sorted(set(folder.classes) ^ set(names))
                raise ValueError(
                    f"expected the same classes in train and {split} of {root!r}, differing: {differing[:8]}"
                )
        super().__init__(list(names), 3, (img_size, img_size), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augmentation = dict(augmentation or {})
        self.seed = seed
        self._transforms = {split: self._transform(split == "train") for split in self._folders}

    def _transform(self, is_training: bool) -> Callable[[Image.Image], Any]:
        extra = self.augmentation if is_training else {}
        size = (3, *self.img_size)
        try:
            transform: Callable[[Image.Image], Any] = create_transform(
                size, is_training=is_training, mean=self.mean, std=self.std, **extra
            )
        except TypeError as error:
            raise ValueError(f"expected arguments of timm.data.create_transform in augmentation: {error}") from error
        return transform

    def dataset(self, split: str) -> Pairs:
        """A split's images.

        Raises:
            FileNotFoundError: No test images.
        """
        if split not in self._folders:
            raise FileNotFoundError(f"expected a folder {str(self.root / split)!r}, found none")
        folder = self._folders[split]
        folder.transform = self._transforms[split]
        images: Pairs = folder
        return images


def _open_split(folder: Path) -> ImageFolder:
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder {str(folder)!r} with one folder for each class, found none")
    try:
        images = ImageFolder(str(folder), loader=read_rgb)
    except FileNotFoundError as error:
        raise FileNotFoundError(" ".join(str(error).split())) from error
    for path, _ in images.samples:
        if Path(path).stat().st_size == 0:
            raise ValueError(f"the image {path!r} is an empty file; remove it or fetch it again")
    return images


def read_rgb(path: str) -> Image.Image:
    """Read an image as 8-bit RGB, what timm's augmentations work on; deeper channels are scaled and rounded, not cut.

    Raises:
        ValueError: Not an image, a damaged one, or one that is neither grey nor RGB; the message names it.
    """
    try:
        pixels = match_channels(read_image(path), 3)
    except OSError as error:
        raise ValueError(f"cannot read the image {path!r}: {error}; remove it or fetch it again") from error
    except ValueError as error:
        raise ValueError(f"{error} ({path})" if path not in str(error) else str(error)) from error
    if pixels.dtype != np.uint8:
        pixels = (to_unit_range(pixels) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))
