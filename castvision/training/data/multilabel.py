"""None, one or several labels for each image: the data module of CSV lists."""

from __future__ import annotations

from castvision.data.datasets.multilabel import open_label_tables
from castvision.data.transforms.augmentation import Augmentation
from castvision.data.transforms.batch_augmentation import BatchAugmentation
from castvision.training.data.pixel_data import ImageFormat, PixelDataModule


class MultiLabelCsvDataModule(PixelDataModule):
    """Lists of images and their labels; see `castvision.data.datasets.multilabel.read_label_table` for the two forms.

    Args:
        root: A folder with ``train.csv``, ``val.csv`` and, if there is one, ``test.csv``; or one CSV file.
        class_names: In order; None = those of the training list.
        img_size: Height and width of images.
        val_share: Share of the images held out where there is one list.
        pixels: Channels, normalisation and sizes; ``fit`` must stay true.
        augmentation: What varies while training.
        batch_augmentation: What varies on the device, for whole batches.
        batch_size: Images a step and process; None = 64, or fewer for few images, see `fitting_batch_size`.
        num_workers: Loader processes.
        seed: Of the order of the images, and of what is held out.
        allow_outside_root: Let lists name files outside their folder; a list from a stranger may name any file.

    Raises:
        FileNotFoundError: A list or an image that is missing.
        ValueError: A line that cannot be used, images that cannot be read, one image in two splits, or a number out of
            range.
    """

    task_kind = "multilabel"
    largest_batch = 64

    def __init__(  # the signature is the configuration
        self,
        root: str,
        class_names: list[str] | None = None,
        img_size: int = 224,
        val_share: float = 0.2,
        pixels: ImageFormat = ImageFormat(),  # noqa: B008  # frozen
        augmentation: Augmentation = Augmentation(scale=(0.8, 1.25)),  # noqa: B008  # frozen
        batch_augmentation: BatchAugmentation | None = None,
        batch_size: int | None = None,
        num_workers: int = 4,
        seed: int = 0,
        allow_outside_root: bool = False,
    ) -> None:
        if not pixels.fit:
            raise ValueError("expected fit: true: the labels are of whole images")
        splits, names = open_label_tables(
            root, class_names, val_share=val_share, seed=seed, allow_outside_root=allow_outside_root
        )
        super().__init__(splits, names, img_size, pixels, augmentation)
        self.load_by(batch_size, num_workers, seed, batch_augmentation)
