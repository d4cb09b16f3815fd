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
from castvision.data.synthetic.pathfinder.curriculum import Curriculum
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

    Attributes:
        fresh: Whether each epoch has new images, rather than those of the first in another order.

    Raises:
        ValueError: A number out of range.
    """

    fresh: bool = True

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
        length = ENDLESS if split == "train" and self.fresh else self.lengths[split]
        dataset: Pairs = self.make(split=split, length=length, seed=self.seed)
        if isinstance(dataset, DenseDataset):
            dataset.gives_distance = split != "train"
        return dataset

    def sampler(self, dataset: Pairs) -> Sampler[int]:
        """New images each epoch, or the same in a new order."""
        return FreshSampler(self.lengths["train"]) if self.fresh else super().sampler(dataset)


class PathfinderDataModule(EndlessDataModule):
    """Endless Pathfinder.

    Args:
        task: "classify" (are the dots joined?), "join" (every image is; mark the path that joins them) or "three-class"
            (other, the long path that is not connected, the joining path).
        img_size: Height and width.
        contour_length: Pieces of a long path: 6, 9 or 14 in the Long Range Arena.
        mode: "lra" (the public generator's images) or "clean" (without its border fault: harder).
        symmetries: Turn or mirror every training image, always the same way.
        fresh: New training images each epoch; False = the same ``train_length`` images in a new order, as a stored set.
        curriculum: Shorter paths first, such as ``{6: 100000, 9: 300000}``: 6 pieces in the first 100,000 training
            images, 9 until the 300,000th, then ``contour_length``. Held-out images always have ``contour_length``.
        gives_paths: Training images of "classify" come with a mask of their paths, for a task's ``mask_weight``.
        train_length: Images an epoch; after each epoch the held-out images are counted.
        val_length: Held-out images that choose the checkpoint.
        test_length: Held-out images read once.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Another seed is another endless set.

    Raises:
        ValueError: An unknown task or mode, a number out of range, a curriculum of images that come again, or paths
            beside another task's masks.
    """

    def __init__(  # the signature is the configuration
        self,
        task: Literal["classify", "join", "three-class"] = "classify",
        img_size: int = 32,
        contour_length: int = 14,
        mode: Literal["lra", "clean"] = "lra",
        symmetries: bool = False,
        fresh: bool = True,
        curriculum: dict[int, int] | None = None,
        gives_paths: bool = False,
        train_length: int = 160_000,
        val_length: int = 2_000,
        test_length: int = 20_000,
        batch_size: int = 16,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        if curriculum and not fresh:
            raise ValueError(
                f"expected no curriculum where the same images come each epoch, got {curriculum=}, {fresh=}"
            )
        if gives_paths and task != "classify":
            raise ValueError(f"expected gives_paths for task='classify' only: {task=} has masks as its target")
        self.fresh, self.symmetries, self.gives_paths = fresh, symmetries, gives_paths
        lengths_of_paths = [*(curriculum or ()), contour_length]
        specs = [PathfinderSpec.lra(img_size, contour_length=length, mode=mode) for length in lengths_of_paths]
        for spec in specs:
            check_room(spec)
        self.easier: list[Callable[..., Any]] = [partial(PathfinderDataset, spec, task=task) for spec in specs[:-1]]
        self.ends = list((curriculum or {}).values())
        make: Callable[..., Any] = partial(PathfinderDataset, specs[-1], task=task)
        super().__init__(make, img_size, (train_length, val_length, test_length))
        self.dataset("train")  # what is wrong with the curriculum is said at once

    def dataset(self, split: str) -> Pairs:
        """As of every endless set; training images may be turned, grow harder and come with their paths."""
        if split != "train":
            return super().dataset(split)
        length = ENDLESS if self.fresh else self.lengths["train"]
        stages = [
            make(split=split, length=length, seed=self.seed, symmetries=self.symmetries)
            for make in [*self.easier, self.make]
        ]
        for stage in stages:
            stage.gives_paths = self.gives_paths
        return Curriculum(stages, self.ends) if self.ends else stages[-1]


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
        tones: Give each region a grey level of its own, which its copy shares.
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
        tones: bool = False,
        train_length: int = 20_000,
        val_length: int = 500,
        test_length: int = 2_000,
        batch_size: int = 16,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        self.load_by(batch_size, num_workers, seed)
        make = partial(CopyMoveDataset, img_size=img_size, decoys=decoys, tones=tones)
        super().__init__(make, img_size, (train_length, val_length, test_length))
