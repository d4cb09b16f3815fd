"""Data made while training: every training image is new, held-out ones are the same in every run."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from castvision.data.datasets.batch import ENDLESS
from castvision.data.synthetic import (
    CopyMoveDataset,
    DenseDataset,
    MazeDataset,
    PathfinderSegDataset,
    RegionDataset,
)
from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec
from castvision.data.synthetic.pathfinder.engine import check_room
from castvision.data.synthetic.pathfinder.spec import segmentation_spec
from castvision.training.data.data_module import ImageDataModule, Pairs
from castvision.training.data.resumable import FreshSampler

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.utils.data import Sampler


class EndlessDataModule(ImageDataModule):
    """Template: a subclass names its data set, and calls `load_by` first.

    Args:
        make: The data set of a split, given ``split``, ``length`` and ``seed``.
        img_size: Height and width.
        lengths: Training images an epoch, held-out images that choose the checkpoint, images read once at the end.

    Raises:
        ValueError: A number out of range.
    """

    def __init__(self, make: Callable[..., Any], img_size: int, lengths: tuple[int, int, int]) -> None:
        self.make = make
        self.lengths = dict(zip(("train", "val", "test"), lengths, strict=True))
        if min(lengths) < 1 or lengths[0] < self.batch_size:
            raise ValueError(
                "expected lengths >= 1 and train_length >= batch_size, got "
                f"{self.lengths}, batch_size={self.batch_size}"
            )
        names = make(split="val", length=1, seed=self.seed).class_names
        super().__init__(names, 1, (img_size, img_size), (0.5,), (0.5,))

    def dataset(self, split: str) -> Pairs:
        """The endless training images, or a split's fixed number; of dense tasks with distances for metrics by them."""
        length = ENDLESS if split == "train" else self.lengths[split]
        dataset: Pairs = self.make(split=split, length=length, seed=self.seed)
        if isinstance(dataset, DenseDataset):
            dataset.gives_distance = split != "train"
        return dataset

    def sampler(self, dataset: Pairs) -> Sampler[int]:
        """New images each epoch."""
        return FreshSampler(self.lengths["train"])


class PathfinderDataModule(EndlessDataModule):
    """Endless Pathfinder.

    Args:
        task: "classify" (are the dots joined?), "join" (every image is; mark the path that joins them) or "three-class"
            (other, the long path that is not connected, the joining path).
        img_size: Height and width.
        contour_length: Pieces of a long path: 6, 9 or 14 in the Long Range Arena.
        mode: "lra" (the public generator's images) or "clean" (without its border fault: harder).
        train_length: Images an epoch; after each epoch the held-out images are counted.
        val_length: Held-out images that choose the checkpoint.
        test_length: Held-out images read once.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Another seed is another endless set.

    Raises:
        ValueError: An unknown task or mode, or a number out of range.
    """

    def __init__(  # the signature is the configuration
        self,
        task: Literal["classify", "join", "three-class"] = "classify",
        img_size: int = 32,
        contour_length: int = 14,
        mode: Literal["lra", "clean"] = "lra",
        train_length: int = 160_000,
        val_length: int = 2_000,
        test_length: int = 20_000,
        batch_size: int = 16,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        spec = PathfinderSpec.lra(img_size, contour_length=contour_length, mode=mode)
        check_room(spec)
        make = partial(PathfinderDataset, spec, task=task)
        super().__init__(make, img_size, (train_length, val_length, test_length))


class MazeDataModule(EndlessDataModule):
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
        self.load_by(batch_size, num_workers, seed)
        make = partial(MazeDataset, img_size=img_size, cell=cell, winding=winding)
        super().__init__(make, img_size, (train_length, val_length, test_length))


class RegionDataModule(EndlessDataModule):
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
        self.load_by(batch_size, num_workers, seed)
        make = partial(RegionDataset, img_size=img_size, radius=radius, share=share)
        super().__init__(make, img_size, (train_length, val_length, test_length))


class PathfinderSegDataModule(EndlessDataModule):
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
        self.load_by(batch_size, num_workers, seed)
        spec = segmentation_spec(img_size, contour_length)
        check_room(spec)
        make = partial(PathfinderSegDataset, img_size=img_size, form=form, spec=spec)
        super().__init__(make, img_size, (train_length, val_length, test_length))


class CopyMoveDataModule(EndlessDataModule):
    """Endless textures: mark a region and its copy; see `castvision.data.synthetic.CopyMoveDataset`.

    Args:
        img_size: Height and width.
        decoys: Regions of the same form with another texture, 0..3, which are not marked.
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
        img_size: int = 64,
        decoys: int = 1,
        train_length: int = 20_000,
        val_length: int = 500,
        test_length: int = 2_000,
        batch_size: int = 16,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        make = partial(CopyMoveDataset, img_size=img_size, decoys=decoys)
        super().__init__(make, img_size, (train_length, val_length, test_length))
