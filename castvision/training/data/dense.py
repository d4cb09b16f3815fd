"""The dense tasks made while training: every training image is new, held-out ones are the same in every run."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Literal

from castvision.data.synthetic import MazeDataset, PathfinderSegDataset, RegionDataset
from castvision.data.synthetic.dataset import ENDLESS, DenseDataset
from castvision.data.synthetic.pathfinder.spec import segmentation_spec
from castvision.training.data.data_module import ImageDataModule, Pairs, check_loading
from castvision.training.data.sampling import FreshSampler

if TYPE_CHECKING:
    from torch.utils.data import Sampler


class DenseDataModule(ImageDataModule):
    """Template: a subclass names its data set.

    Args:
        img_size: Height and width.
        lengths: Training images an epoch, held-out images that choose the checkpoint, images read once at the end.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Another seed is another endless set.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(
        self, img_size: int, lengths: tuple[int, int, int], batch_size: int, num_workers: int, seed: int
    ) -> None:
        check_loading(batch_size, num_workers)
        if min(lengths) < 1 or lengths[0] < batch_size:
            raise ValueError(f"expected lengths >= 1 and train_length >= batch_size, got {lengths=}, {batch_size=}")
        self.lengths = dict(zip(("train", "val", "test"), lengths, strict=True))
        self.seed = seed
        names = self.make_dataset(img_size=img_size, split="val", length=1, seed=seed).class_names
        super().__init__(list(names), 1, (img_size, img_size), (0.5,), (0.5,))
        self.batch_size, self.num_workers = batch_size, num_workers

    @abstractmethod
    def make_dataset(self, **key: Any) -> DenseDataset:
        """The task's data set with ``img_size``, ``split``, ``length`` and ``seed``."""

    def dataset(self, split: str) -> Pairs:
        """The endless training images, or a split's fixed number, with distances from the dot for figures by them."""
        length = ENDLESS if split == "train" else self.lengths[split]
        dataset = self.make_dataset(img_size=self.img_size[0], split=split, length=length, seed=self.seed)
        dataset.gives_distance = split != "train"
        return dataset

    def sampler(self, dataset: Pairs) -> Sampler[int]:
        """New images each epoch."""
        return FreshSampler(self.lengths["train"])


class MazeDataModule(DenseDataModule):
    """Endless mazes: mark the only way between two dots; see `castvision.data.synthetic.MazeDataset`.

    Args:
        img_size: Height and width.
        cell: Pixels from one cell to the next.
        winding: 0..1: how long and winding the ways are.
        train_length: Images an epoch; after each epoch the held-out images are counted.
        val_length: Held-out images that choose the checkpoint.
        test_length: Held-out images read once.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Another seed is another endless set.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(  # the signature is the configuration
        self,
        img_size: int = 512,
        cell: int = 4,
        winding: float = 1.0,
        train_length: int = 20_000,
        val_length: int = 500,
        test_length: int = 2_000,
        batch_size: int = 16,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {"cell": cell, "winding": winding}
        super().__init__(img_size, (train_length, val_length, test_length), batch_size, num_workers, seed)

    def make_dataset(self, **key: Any) -> DenseDataset:
        """A `MazeDataset`."""
        return MazeDataset(**self.options, **key)


class RegionDataModule(DenseDataModule):
    """Endless landscapes: mark the region a dot lies in; see `castvision.data.synthetic.RegionDataset`.

    Args:
        img_size: Height and width.
        radius: Of the smoothing; None = in proportion to the image.
        share: Of land in the image.
        train_length: Images an epoch; after each epoch the held-out images are counted.
        val_length: Held-out images that choose the checkpoint.
        test_length: Held-out images read once.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Another seed is another endless set.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(  # the signature is the configuration
        self,
        img_size: int = 512,
        radius: int | None = None,
        share: float = 0.5,
        train_length: int = 20_000,
        val_length: int = 500,
        test_length: int = 2_000,
        batch_size: int = 16,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {"radius": radius, "share": share}
        super().__init__(img_size, (train_length, val_length, test_length), batch_size, num_workers, seed)

    def make_dataset(self, **key: Any) -> DenseDataset:
        """A `RegionDataset`."""
        return RegionDataset(**self.options, **key)


class PathfinderSegDataModule(DenseDataModule):
    """Endless Pathfinder with dots on distractors; see `castvision.data.synthetic.PathfinderSegDataset`.

    Args:
        img_size: Height and width.
        form: "three-class" (other, a long path that does not join two dots, the path that does) or "one-dot".
        contour_length: Paddles in a long path; None: that of `segmentation_spec`.
        train_length: Images an epoch; after each epoch the held-out images are counted.
        val_length: Held-out images that choose the checkpoint.
        test_length: Held-out images read once.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Another seed is another endless set.

    Raises:
        ValueError: An unknown form, or a number out of range.
    """

    def __init__(  # the signature is the configuration
        self,
        img_size: int = 512,
        form: Literal["three-class", "one-dot"] = "three-class",
        contour_length: int | None = None,
        train_length: int = 20_000,
        val_length: int = 500,
        test_length: int = 2_000,
        batch_size: int = 16,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        self.options: dict[str, Any] = {"form": form, "spec": segmentation_spec(img_size, contour_length)}
        super().__init__(img_size, (train_length, val_length, test_length), batch_size, num_workers, seed)

    def make_dataset(self, **key: Any) -> DenseDataset:
        """A `PathfinderSegDataset`."""
        return PathfinderSegDataset(**self.options, **key)
