"""Any data set of torchvision or timm by its name, for the task its targets are for."""

from __future__ import annotations

import inspect
import itertools
import logging
from typing import Any

import numpy as np

from castvision.data.datasets.leaks import check_apart, same_images
from castvision.data.datasets.named import NamedDataset, image_paths, open_named, torchvision_class
from castvision.data.datasets.regions import held_out
from castvision.data.reading.labels import LabelMap
from castvision.data.transforms.augmentation import Augmentation
from castvision.data.transforms.batch_augmentation import BatchAugmentation
from castvision.training.data.pixel_data import FORMAT, ImageFormat, PixelDataModule

logger = logging.getLogger(__name__)

_KINDS = {0: "classification", 1: "multilabel", 2: "segmentation"}
_SPLITS = ("train", "val", "test")
_FOLDERS_OF_USERS = ("torchvision/ImageFolder", "timm/")
"""Whose images are compared by content; of published data sets only by path: their splits are not ours to mend."""
AUGMENTATION = Augmentation(scale=(0.8, 1.25))  # frozen


class NamedDataModule(PixelDataModule):
    """``torchvision/CLASS`` or ``timm/NAME``; nothing is fetched unless ``download`` is true.

    Without ``splits``, the data set's own "train", "val" and "test" are used as far as it has them; without a "val",
    ``val_share`` of the training images is held out, so that the test images stay unseen.

    Args:
        name: Such as ``torchvision/OxfordIIITPet``, ``torchvision/CIFAR10``, ``timm/torch/cifar100`` or ``timm/``.
        root: Where the files are.
        class_names: In order; None = the data set's own, which masks have not.
        img_size: Height and width of images.
        arguments: For opening every split, such as ``{target_types: segmentation}``.
        splits: For opening each split, such as ``{train: {split: trainval}, val: {split: test}}``, or its own ``root``.
        label_map: From labels to classes; see `LabelMap`.
        download: Let the library fetch what is missing; with several processes, fetch once beforehand.
        val_share: Share of the training images held out where there is no "val".
        pixels: Channels, normalisation and sizes.
        augmentation: What varies while training.
        batch_augmentation: What varies on the device, for whole batches.
        batch_size: Images a step and process; None = 64, or fewer for few images, see `fitting_batch_size`.
        num_workers: Loader processes.
        seed: Of the order of the images, and of what is held out.

    Raises:
        FileNotFoundError: The files are not there.
        ValueError: An unknown name or argument, samples that cannot be used, or a number out of range.
    """

    largest_batch = 64

    def __init__(  # the signature is the configuration
        self,
        name: str,
        root: str = "data",
        class_names: list[str] | None = None,
        img_size: int = 224,
        arguments: dict[str, Any] | None = None,
        splits: dict[str, dict[str, Any]] | None = None,
        label_map: dict[int | str, int | str] | None = None,
        download: bool = False,
        val_share: float = 0.1,
        pixels: ImageFormat = FORMAT,
        augmentation: Augmentation = AUGMENTATION,
        batch_augmentation: BatchAugmentation | None = None,
        batch_size: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        common = {"download": download, **(arguments or {})}
        sources = _open_usual(name, root, common) if splits is None else _open_given(name, root, common, splits)
        self.task_kind = _kind(sources["train"], name)
        labels = LabelMap(class_names or _own_names(sources["train"], self.task_kind, name), label_map)
        self.label_map = labels.mapping
        known = {split: image_paths(source) for split, source in sources.items()}
        check_apart(known, contents=name in _FOLDERS_OF_USERS)
        indices: dict[str, list[int] | None] = dict.fromkeys(sources)
        if "val" not in sources:
            sources["val"] = sources["train"]
            paths = known["train"]
            groups = same_images(paths, contents=name in _FOLDERS_OF_USERS) if paths else None
            indices |= dict(held_out(len(sources["train"]), val_share, seed, groups))
        datasets = {
            split: NamedDataset(source, f"{name} ({split})", labels, indices[split])
            for split, source in sources.items()
        }
        super().__init__(datasets, labels.class_names, img_size, pixels, augmentation)
        self.load_by(batch_size, num_workers, seed, batch_augmentation)


def _open_given(name: str, root: str, common: dict[str, Any], splits: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if "train" not in splits or not set(splits) <= set(_SPLITS):
        raise ValueError(f"expected splits named train, val and test, got {sorted(splits)}")
    for one, other in itertools.combinations(splits, 2):
        if splits[one] == splits[other]:
            raise ValueError(
                f"expected other images in each split, got {one} and {other} opened alike, by {splits[one]}; leave out "
                "val to hold out a share of the training images"
            )
    return {split: open_named(name, **{"root": root, **common, **how}) for split, how in splits.items()}


def _open_usual(name: str, root: str, common: dict[str, Any]) -> dict[str, Any]:
    sources = {}
    for split, how in _usual_splits(name).items():
        try:
            sources[split] = open_named(name, root, **{**how, **common})
        except ValueError as error:
            if split == "train":
                raise ValueError(f"{error}; name what to open by splits, such as {{train: {{split: ...}}}}") from error
            logger.info("%s has no split %r", name, split)
    return sources


def _usual_splits(name: str) -> dict[str, dict[str, Any]]:
    library, _, rest = name.partition("/")
    if library == "timm":
        # the data sets timm takes from torchvision have two splits, and call the second one validation
        second = "test" if rest.lower().startswith("torch/") else "val"
        return {"train": {"split": "train"}, second: {"split": "validation"}}
    known = inspect.signature(torchvision_class(rest).__init__).parameters if library == "torchvision" else {}
    if "train" in known:
        return {"train": {"train": True}, "test": {"train": False}}
    for key in ("split", "image_set"):
        if key in known:
            return {split: {key: split} for split in _SPLITS}
    return {"train": {}}


def _kind(source: Any, name: str) -> str:
    if len(source) == 0:
        raise ValueError(f"expected images in {name}, got none")
    target = source[0][1]
    if isinstance(target, (tuple, dict, str)) or target is None or np.ndim(target) not in _KINDS:
        raise ValueError(
            f"expected one target for each image of {name}: a class, zeros and ones, or a mask; got "
            f"{type(target).__name__}; choose one kind of target by arguments"
        )
    return _KINDS[np.ndim(target)]


def _own_names(source: Any, kind: str, name: str) -> list[str]:
    names = getattr(source, "classes", None) or getattr(source, "categories", None)
    if kind == "classification" and names:
        return [label if isinstance(label, str) else ", ".join(label) for label in names]
    count = getattr(source, "num_classes", None)
    if kind == "classification" and isinstance(count, int):
        return [f"class {label}" for label in range(count)]
    raise ValueError(f"expected class_names, since {name} does not name the classes of its targets, got none")
