"""The Long Range Arena's vision tasks from files: Pathfinder folders, and Image (CIFAR-10 in grey)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from castvision.data.datasets.lra import MEAN, STD, LRAImage, LRAPathfinder
from castvision.data.synthetic.pathfinder.dataset import CLASS_NAMES
from castvision.training.data.data_module import ImageDataModule, Pairs, check_loading

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


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
        check_loading(batch_size, num_workers)
        super().__init__(list(CLASS_NAMES["classify"]), 1, (resolution, resolution), (0.5,), (0.5,))
        self._splits = {split: LRAPathfinder(root, resolution, difficulty, split) for split in ("train", "val", "test")}
        for split, images in self._splits.items():
            if len(images) == 0:
                raise ValueError(f"expected ten images or more in {root!r}, found none for {split}")
        size = tuple(self._splits["val"][0][0].shape[-2:])
        if size != self.img_size:
            raise ValueError(f"expected images of {resolution} × {resolution} in {root!r}, got {size}; set resolution")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

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
        check_loading(batch_size, num_workers)
        super().__init__(list(CIFAR10_NAMES), 1, (32, 32), (MEAN,), (STD,))
        self.root = root
        self.download = download
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
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
