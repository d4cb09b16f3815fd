"""Segmentation of image files: folders or lists of images and masks, and COCO's annotations."""

from __future__ import annotations

from pathlib import Path

from castvision.data.datasets.coco import CocoSegmentation, read_coco
from castvision.data.datasets.segmentation import SegmentationDataset, find_pairs
from castvision.data.reading.labels import LabelMap
from castvision.data.transforms.augmentation import Augmentation
from castvision.data.transforms.batch_augmentation import BatchAugmentation
from castvision.training.data.pixel_data import ImageFormat, PixelDataModule


class SegmentationFolderDataModule(PixelDataModule):
    """Folders or lists of images and masks; see `castvision.data.find_pairs` for the layouts.

    Args:
        root: The folder, or one CSV file.
        class_names: In the order of the labels.
        img_size: Height and width of training images.
        label_map: From labels in the masks (numbers, or colours such as ``"#ff0000"``) to classes (numbers or names) or
            ``ignore``; see `LabelMap`. None = labels are class numbers, 255 is ignored.
        val_share: Share of the images held out where the data name no split.
        pixels: Channels, normalisation and sizes.
        augmentation: What varies while training.
        batch_augmentation: What varies on the device, for whole batches.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Of the order of the images, and of what is held out.

    Raises:
        FileNotFoundError: A folder, list or file that is missing.
        ValueError: Images without masks, masks that do not fit, labels without a class, or a number out of range.
    """

    task_kind = "segmentation"

    def __init__(  # the signature is the configuration
        self,
        root: str,
        class_names: list[str],
        img_size: int = 512,
        label_map: dict[int | str, int | str] | None = None,
        val_share: float = 0.2,
        pixels: ImageFormat = ImageFormat(),  # noqa: B008  # frozen
        augmentation: Augmentation = Augmentation(),  # noqa: B008  # frozen
        batch_augmentation: BatchAugmentation | None = None,
        batch_size: int = 8,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        labels = LabelMap(class_names, label_map)
        pairs = find_pairs(root, val_share=val_share, seed=seed)
        splits = {split: SegmentationDataset(some, labels) for split, some in pairs.items()}
        super().__init__(splits, class_names, img_size, pixels, augmentation)
        self.load_by(batch_size, num_workers, seed, batch_augmentation)


class CocoDataModule(PixelDataModule):
    """COCO's instance annotations as classes of pixels: "background", then the categories by their ids.

    Args:
        root: What the other paths are relative to.
        annotations: A JSON file for "train", "val" and, if there is one, "test".
        folders: The folder of a split's images; by default its annotation file's.
        img_size: Height and width of training images.
        pixels: Channels, normalisation and sizes.
        augmentation: What varies while training.
        batch_augmentation: What varies on the device, for whole batches.
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Of the order of the images.

    Raises:
        FileNotFoundError: A file that is missing.
        ValueError: Splits with different categories, annotations that cannot be used, or a number out of range.
    """

    task_kind = "segmentation"

    def __init__(  # the signature is the configuration
        self,
        root: str,
        annotations: dict[str, str],
        folders: dict[str, str] | None = None,
        img_size: int = 512,
        pixels: ImageFormat = ImageFormat(),  # noqa: B008  # frozen
        augmentation: Augmentation = Augmentation(),  # noqa: B008  # frozen
        batch_augmentation: BatchAugmentation | None = None,
        batch_size: int = 8,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        if not {"train", "val"} <= set(annotations) <= {"train", "val", "test"}:
            raise ValueError(f"expected annotations for train and val (and test), got {sorted(annotations)}")
        files = {}
        for split, path in annotations.items():
            folder = (folders or {}).get(split)
            files[split] = read_coco(Path(root) / path, None if folder is None else Path(root) / folder)
        names = files["train"].class_names
        for split, file in files.items():
            if file.class_names != names or file.label_of != files["train"].label_of:
                differing = sorted(set(file.class_names) ^ set(names))
                raise ValueError(f"expected the same categories in train and {split}, differing: {differing[:8]}")
        splits = {split: CocoSegmentation(file) for split, file in files.items()}
        super().__init__(splits, names, img_size, pixels, augmentation)
        self.load_by(batch_size, num_workers, seed, batch_augmentation)
