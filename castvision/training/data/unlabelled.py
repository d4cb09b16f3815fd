"""Images without labels, from a folder: for tasks that learn from a model and not from people."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch.utils.data import Dataset

from castvision.data.datasets.batch import Sample
from castvision.data.datasets.leaks import check_apart, hold_out_images
from castvision.data.datasets.samples import check_files
from castvision.data.reading.folders import walk_images
from castvision.data.transforms.crop import cropping_transform
from castvision.data.transforms.statistics import ChannelStatistics
from castvision.training.data.classification import read_picture, training_transform
from castvision.training.data.data_module import ImageDataModule, Pairs
from castvision.training.data.pixel_data import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

AUGMENTATION = {"scale": [0.3, 1.0], "color_jitter": None}
"""Crops of different sizes and mirror images; colours stay as they are."""


class UnlabelledImages(Dataset[Sample]):
    """Image files as (image, labels): a tensor (3, height, width), and (0,), the labels of no classes.

    Args:
        paths: The files.
        transform: From what `read_picture` gives.
        mean: What stands where no data is, 0..1, one for each channel.
    """

    def __init__(self, paths: Sequence[Path], transform: Callable[[Any], torch.Tensor], mean: Sequence[float]) -> None:
        self.paths = list(paths)
        self.transform = transform
        self.read = partial(read_picture, mean=mean)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """What to call an image in captions."""
        return str(self.paths[index])

    def __getitem__(self, index: int) -> Sample:
        """One image.

        Raises:
            ValueError: It cannot be read; the message names it.
        """
        return self.transform(self.read(str(self.paths[index]))), torch.zeros(0)


class UnlabelledFolderDataModule(ImageDataModule):
    """All images below a folder, read as grey or RGB of any depth; no labels.

    Folders ``ROOT/train`` and ``ROOT/val`` are the splits if there are both; otherwise a share of the images is held
    out. Copies of one image go to one split.

    Args:
        root: The folder.
        img_size: Height and width of what the model is shown: while training of crops of all sizes, held out of the
            middle of each image.
        val_share: Share of the images held out.
        augmentation: For ``timm.data.create_transform`` while training. None = crops of 30 % of an image or more and
            mirror images.
        mean: Subtracted, per channel or one for all, 0..1; None = ImageNet's, on which most models were trained, and in
            a configuration that of the weights of ``model_name``, which may be another (AugReg, SigLIP: 0.5).
        std: Divided by, likewise.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Of the order of the images, and of what is held out.

    Raises:
        FileNotFoundError: No such folder, or no images in it.
        ValueError: An empty file, one image in two splits, fewer than two images, mean without std, or a number out of
            range.
    """

    resize = "crop"
    task_kind = "features"

    def __init__(  # the signature is the configuration
        self,
        root: str,
        img_size: int = 518,
        val_share: float = 0.2,
        augmentation: dict[str, Any] | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        batch_size: int = 1,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        given = ImageFormat(mean=mean, std=std).statistics(3)
        statistics = given or ChannelStatistics(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        paths = _split(Path(root), val_share, seed)
        super().__init__([], 3, (img_size, img_size), statistics.mean, statistics.std)
        seen = (self.img_size, self.mean, self.std)
        how: dict[str, Callable[[Any], torch.Tensor]] = {
            "train": training_transform(*seen, AUGMENTATION if augmentation is None else augmentation),
            "val": cropping_transform(*seen),
        }
        self._images = {split: UnlabelledImages(paths[split], how[split], self.mean) for split in how}
        if len(paths["train"]) < batch_size:
            raise ValueError(
                f"expected batch_size <= {len(paths['train'])} (the training images in {root!r}), got {batch_size=}"
            )

    @property
    def held_out_batch_size(self) -> int:
        """As many as in training: they run through two models."""
        return self.batch_size

    def dataset(self, split: str) -> Pairs:
        """The images of "train" or "val"; those of "test" are those of "val"."""
        return self._images["train" if split == "train" else "val"]


def _split(root: Path, val_share: float, seed: int) -> dict[str, list[Path]]:
    if not root.is_dir():
        raise FileNotFoundError(f"expected a folder with images at {str(root)!r}, found none; check the path")
    if (root / "train").is_dir() and (root / "val").is_dir():
        found = {split: walk_images(root / split) for split in ("train", "val")}
        check_apart(found)
    else:
        paths = walk_images(root)
        if not paths:
            raise FileNotFoundError(f"expected images in {str(root)!r}, found none")
        found = {split: [paths[i] for i in indices] for split, indices in hold_out_images(paths, val_share, seed)}
    for split, paths in found.items():
        if not paths:
            raise FileNotFoundError(f"expected images in {str(root / split)!r}, found none")
        check_files(paths)
    return found
