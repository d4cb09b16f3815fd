"""Images with numbered objects, for `castvision.training.tasks.instances.InstanceTask`."""

from __future__ import annotations

from castvision.data.datasets.objects import open_objects
from castvision.data.transforms.augmentation import Augmentation
from castvision.training.data.pixel_data import AUGMENTATION, ImageFormat, PixelDataModule

FORMAT = ImageFormat(fit=False)


class InstanceDataModule(PixelDataModule):
    """Folders of images and masks of objects; see `castvision.data.datasets.objects.find_objects` for the layout.

    Images keep their size: training cuts windows, held-out images go through whole, one at a time.

    Args:
        root: The folder.
        class_names: In the order of the labels; None = those of ``classes.txt``, or "background" and "object". Without
            masks of classes there are two, and all objects have the second.
        img_size: Height and width of training windows.
        label_map: From labels in masks of classes to classes, see `SegmentationDataModule`.
        pixels: Channels and normalisation; its ``fit`` must be False.
        augmentation: What varies while training.
        batch_size: Windows a step and process; None = 8, or fewer for few images, see `fitting_batch_size`.
        num_workers: Loader processes.
        seed: Of the order of the images.

    Raises:
        FileNotFoundError: A folder that is missing.
        ValueError: Images without masks, masks that do not fit, or a number out of range.
    """

    task_kind = "segmentation"
    largest_batch = 8

    def __init__(  # the signature is the configuration
        self,
        root: str,
        class_names: list[str] | None = None,
        img_size: int = 256,
        label_map: dict[int | str, int | str] | None = None,
        pixels: ImageFormat = FORMAT,
        augmentation: Augmentation = AUGMENTATION,
        batch_size: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        if pixels.fit:
            raise ValueError("expected pixels.fit: false for objects, whose offsets are in pixels; leave it out")
        splits, labels = open_objects(root, class_names, label_map)
        self.label_map = labels.mapping
        super().__init__(splits, labels.class_names, img_size, pixels, augmentation)
        self.load_by(batch_size, num_workers, seed)
