"""Pathfinder made while training: every training image is new, held-out ones are the same in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec
from castvision.data.synthetic.pathfinder.dataset import CLASS_NAMES
from castvision.training.data.data_module import ImageDataModule, Pairs, check_loading
from castvision.training.data.sampling import FreshSampler

if TYPE_CHECKING:
    from torch.utils.data import Sampler

_ENDLESS = 1 << 40


class PathfinderDataModule(ImageDataModule):
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
        check_loading(batch_size, num_workers)
        lengths = {"train": train_length, "val": val_length, "test": test_length}
        if min(lengths.values()) < 1 or train_length < batch_size:
            raise ValueError(f"expected lengths >= 1 and train_length >= batch_size, got {lengths}, {batch_size=}")
        super().__init__(list(CLASS_NAMES[task]), 1, (img_size, img_size), (0.5,), (0.5,))
        self.spec = PathfinderSpec.lra(img_size, contour_length=contour_length, mode=mode)
        self.task = task
        self.lengths = lengths
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed

    def dataset(self, split: str) -> Pairs:
        """The endless training images, or a split's fixed number."""
        length = _ENDLESS if split == "train" else self.lengths[split]
        return PathfinderDataset(self.spec, task=self.task, split=split, length=length, seed=self.seed)

    def sampler(self, dataset: Pairs) -> Sampler[int]:
        """New images each epoch."""
        return FreshSampler(self.lengths["train"])
