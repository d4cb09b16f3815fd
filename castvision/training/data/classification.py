"""Classification of images from files: one folder a class, and the Long Range Arena's two vision tasks."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, create_transform
from torch import Tensor

from castvision.data.datasets.checking import spread
from castvision.data.datasets.class_folders import open_class_folders
from castvision.data.datasets.lra import MEAN, STD, LRAImage, LRAPathfinder
from castvision.data.datasets.samples import load_pixels
from castvision.data.synthetic.pathfinder.dataset import CLASS_NAMES
from castvision.data.transforms.crop import ByDepth, cropping_transform, rgb_picture, rgb_pixels
from castvision.data.transforms.statistics import ChannelStatistics, RunningStatistics
from castvision.training.data.data_module import ImageDataModule, Pairs
from castvision.training.data.pixel_data import ImageFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from castvision.data.reading.pixels import Pixels

logger = logging.getLogger(__name__)

MEASURED_IMAGES = 256
"""Training images that mean and standard deviation are measured on."""
CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class ImageFolderDataModule(ImageDataModule):
    """``ROOT/train/CLASS/*.png``, ``ROOT/val/CLASS/*.png`` and, if there is one, ``ROOT/test``; read as RGB.

    Images of more than 8 bits keep their depth: they are augmented without ``auto_augment``, whose operations know 8
    bits only.

    Args:
        root: The folder that holds ``train`` and ``val``.
        img_size: Height and width images are brought to.
        batch_size: Images a step and process; None = 64, or fewer for few images, see `fitting_batch_size`.
        num_workers: Loader processes.
        augmentation: For ``timm.data.create_transform`` while training, such as ``{re_prob: 0.25}``.
        seed: Of the order of the images.
        mean: Of red, green and blue, or one for all, 0..1; None = measured on training images, with ``std``.
        std: Likewise.

    Raises:
        FileNotFoundError: A folder that is missing, or a class without images.
        ValueError: Splits with different classes, one image in two splits, an empty file, or a number out of range.
    """

    resize = "crop"
    largest_batch = 64

    def __init__(
        self,
        root: str,
        img_size: int = 224,
        batch_size: int | None = None,
        num_workers: int = 4,
        augmentation: dict[str, Any] | None = None,
        seed: int = 0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        given = ImageFormat(mean=mean, std=std).statistics(3)
        self.root = Path(root)
        self._folders = open_class_folders(self.root)
        self.fit_batch(len(self._folders["train"]))
        names = self._folders["train"].classes
        self.augmentation = dict(augmentation or {})
        self._is_deep = read_rgb_pixels(self._folders["train"].samples[0][0]).dtype != np.uint8
        if self._is_deep and self.augmentation.get("auto_augment"):
            logger.warning("auto_augment is left out for images of more than 8 bits, which its operations cannot take")
        statistics = given or self._measured()
        super().__init__(names, 3, (img_size, img_size), statistics.mean, statistics.std)
        for split, folder in self._folders.items():
            folder.loader = partial(read_picture, mean=self.mean)
            folder.transform = self._transform(is_training=split == "train")

    def _measured(self) -> ChannelStatistics:
        """Of training images, spread evenly; those of another depth than the first one are left out."""
        paths = [path for path, _ in self._folders["train"].samples]
        running = RunningStatistics()
        for index in spread(len(paths), MEASURED_IMAGES):
            pixels = read_rgb_pixels(paths[index])
            if (pixels.dtype != np.uint8) == self._is_deep:
                running.add(pixels)
        return running.result()

    def _transform(self, is_training: bool) -> Callable[[Any], Any]:
        if not is_training:
            return cropping_transform(self.img_size, self.mean, self.std)
        return training_transform(self.img_size, self.mean, self.std, self.augmentation)

    def dataset(self, split: str) -> Pairs:
        """A split's images.

        Raises:
            FileNotFoundError: No test images.
        """
        if split not in self._folders:
            raise FileNotFoundError(f"expected a folder {str(self.root / split)!r}, found none")
        return cast("Pairs", self._folders[split])  # map-style by what it does


def training_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float], augmentation: Mapping[str, Any]
) -> ByDepth:
    """From a picture to (3, *size) float32, normalised and augmented as timm does.

    Args:
        size: (height, width).
        mean: Per channel.
        std: Per channel.
        augmentation: For ``timm.data.create_transform``; ``auto_augment`` acts on pictures of 8 bits only.

    Raises:
        ValueError: An argument that timm does not take.
    """
    how: dict[str, Any] = {"is_training": True, "mean": tuple(mean), "std": tuple(std)}
    try:
        shallow = create_transform((3, *size), **how, **augmentation)
        deep = create_transform((3, *size), **how, **{**augmentation, "auto_augment": None})
    except TypeError as error:
        raise ValueError(f"expected arguments of timm.data.create_transform in augmentation: {error}") from error
    keep_a_bit(shallow)
    return ByDepth(shallow, deep)


def read_picture(path: str, mean: Sequence[float] = IMAGENET_DEFAULT_MEAN) -> Image.Image | Tensor:
    """Read an image as RGB: of 8 bits as timm's augmentations work on it, a deeper one without losing depth.

    Args:
        path: The file.
        mean: What stands where no data is, which normalisation makes 0: 0..1, one for each channel.

    Returns:
        A picture of 8 bits, or (3, height, width) float32, 0..1.

    Raises:
        ValueError: Not an image, a damaged one, or one that is neither grey nor RGB; the message names it.
    """
    with _naming(path):
        return rgb_picture(_load(path), mean)


def read_rgb_pixels(path: str) -> Pixels:
    """`rgb_pixels` of a file.

    Raises:
        ValueError: See `read_picture`.
    """
    with _naming(path):
        return rgb_pixels(_load(path))


def _load(path: str) -> Pixels:
    pixels = load_pixels(path)
    if pixels.shape[-1] not in (1, 3):
        raise ValueError(
            f"expected grey or RGB images in folders of classes, got {pixels.shape[-1]} channels in {path!r}; write "
            "three bands of each, or name the images with all their bands in lists (--config multilabel_csv)"
        )
    return pixels


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in the errors of reading it."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"cannot read the image {path!r}: {error}; remove it or fetch it again") from error
    except ValueError as error:
        raise ValueError(f"{error} ({path})" if path not in str(error) else str(error)) from error


def keep_a_bit(transform: Any) -> None:
    """Let no posterising of timm's policies ask for 0 bits: that is a black image, and an error from Pillow 13 on.

    Args:
        transform: Of ``timm.data.create_transform``; changed in place.
    """
    for step in getattr(transform, "transforms", [transform]):
        policies = [getattr(step, "ops", []), *getattr(step, "policy", [])]
        for operation in (operation for policy in policies for operation in policy):
            if str(getattr(operation, "name", "")).startswith("Posterize"):
                operation.level_fn = partial(_at_least_a_bit, operation.level_fn)


def _at_least_a_bit(level_to_bits: Callable[[float, Any], tuple[int]], level: float, options: Any) -> tuple[int]:
    (bits,) = level_to_bits(level, options)
    return (max(1, bits),)


class LRAPathfinderDataModule(ImageDataModule):
    """Pathfinder folders: the original release, or what ``castvision make-pathfinder`` wrote.

    Args:
        root: The unpacked release, or one folder with ``imgs`` and ``metadata``.
        resolution: 32, 64, 128 or 256; of a single folder, the size of its images.
        difficulty: "easy", "intermediate" or "hard"; unused for a single folder.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Of the order of the images.

    Raises:
        FileNotFoundError: A folder or an image that is missing.
        ValueError: Metadata that is no such table, images of another size, or a number out of range.
    """

    def __init__(
        self,
        root: str,
        resolution: int = 32,
        difficulty: Literal["easy", "intermediate", "hard"] = "hard",
        batch_size: int = 128,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        super().__init__(CLASS_NAMES["classify"], 1, (resolution, resolution), (0.5,), (0.5,))
        self._splits = {split: LRAPathfinder(root, resolution, difficulty, split) for split in ("train", "val", "test")}
        for split, images in self._splits.items():
            if len(images) == 0:
                raise ValueError(f"expected ten images or more in {root!r}, found none for {split}")
        size = tuple(self._splits["val"][0][0].shape[-2:])
        if size != self.img_size:
            raise ValueError(f"expected images of {resolution} × {resolution} in {root!r}, got {size}; set resolution")

    def dataset(self, split: str) -> Pairs:
        """A split's images."""
        return self._splits[split]


class LRAImageDataModule(ImageDataModule):
    """CIFAR-10 in grey, one token a pixel if the model takes it so; split and normalised as the benchmark does.

    Args:
        root: Holds ``cifar-10-batches-py``.
        download: Let torchvision fetch what is missing.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Of the order of the images.

    Raises:
        FileNotFoundError: No data set there, or damaged files.
        ValueError: A number out of range.
    """

    def __init__(
        self, root: str, download: bool = False, batch_size: int = 128, num_workers: int = 4, seed: int = 0
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        super().__init__(CIFAR10_NAMES, 1, (32, 32), (MEAN,), (STD,))
        self.root = root
        self.download = download
        if not download and not (Path(root) / LRAImage.source.base_folder).is_dir():
            raise FileNotFoundError(
                f"expected a folder {LRAImage.source.base_folder} in {root!r}, found none; "
                "set download: true to fetch it"
            )

    def prepare_data(self) -> None:
        """Fetch what is missing, if that is wanted; once a machine."""
        if self.download:
            LRAImage(self.root, download=True)

    def dataset(self, split: str) -> Pairs:
        """A split's images.

        Raises:
            FileNotFoundError: Files that are missing or damaged.
        """
        try:
            return LRAImage(self.root, split)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise FileNotFoundError(f"cannot read CIFAR-10 in {self.root!r}: {reason}; set download: true") from error
