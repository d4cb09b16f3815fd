"""Any number of labels for each image: the data module of CSV lists and the task."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn import functional
from torch.optim import AdamW
from torchmetrics.classification import MultilabelAveragePrecision, MultilabelStatScores

from castvision.data.datasets.batch import Batch
from castvision.data.datasets.multilabel import LabelTable, MultiLabelDataset, read_label_table
from castvision.data.datasets.regions import held_out
from castvision.data.transforms.augmentation import Augmentation
from castvision.data.transforms.batch_augmentation import BatchAugmentation
from castvision.metrics import metric_key
from castvision.training.building import build_classifier
from castvision.training.data.pixel_data import ImageFormat, PixelDataModule
from castvision.training.optim import Schedule
from castvision.training.tasks.task import Task

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        batch_size: Images a step and process.
        num_workers: Loader processes.
        seed: Of the order of the images, and of what is held out.

    Raises:
        FileNotFoundError: A list or an image that is missing.
        ValueError: A line that cannot be used, images that cannot be read, or a number out of range.
    """

    task_kind = "multilabel"

    def __init__(  # the signature is the configuration
        self,
        root: str,
        class_names: list[str] | None = None,
        img_size: int = 224,
        val_share: float = 0.2,
        pixels: ImageFormat = ImageFormat(),  # noqa: B008  # frozen
        augmentation: Augmentation = Augmentation(scale=(0.8, 1.25)),  # noqa: B008  # frozen
        batch_augmentation: BatchAugmentation | None = None,
        batch_size: int = 64,
        num_workers: int = 4,
        seed: int = 0,
    ) -> None:
        if not pixels.fit:
            raise ValueError("expected fit: true: the labels are of whole images")
        tables = _read_tables(Path(root), class_names, val_share, seed)
        splits = {split: MultiLabelDataset(table) for split, table in tables.items()}
        super().__init__(splits, tables["train"].class_names, img_size, pixels, augmentation)
        self.load_by(batch_size, num_workers, seed, batch_augmentation)


def _read_tables(root: Path, class_names: list[str] | None, val_share: float, seed: int) -> dict[str, LabelTable]:
    if root.suffix.lower() == ".csv":
        table = read_label_table(root, class_names)
        return {
            split: LabelTable([table.images[place] for place in places], table.class_names, table.targets[places])
            for split, places in held_out(len(table.images), val_share, seed)
        }
    train = read_label_table(root / "train.csv", class_names)
    others = {split: root / f"{split}.csv" for split in ("val", "test")}
    found = {split: path for split, path in others.items() if split == "val" or path.is_file()}
    return {"train": train, **{split: read_label_table(path, train.class_names) for split, path in found.items()}}


class MultiLabelTask(Task):
    """Any number of classes for each image, by binary cross-entropy; any timm model.

    Args:
        model_name: A registered timm model.
        num_classes: As many as the data have.
        model_kwargs: For ``timm.create_model``.
        optimizer: Makes the optimiser from parameter groups.
        schedule: The learning rate over the run.
        weight_decay: For matrices; vectors and what the model's ``no_weight_decay()`` names have none.
        layer_decay: Factor on the learning rate from one layer to the one below it; 1 = all alike.
        pos_weight: Weight of each class's positive images in the loss; None = all 1.
        init_from: A file of weights to start from.
        freeze: Shell patterns of parameter names that stay as they are.

    Raises:
        ValueError: Anything the model, the checkpoint or the task cannot work with.
        FileNotFoundError: No file at ``init_from``.
    """

    kind = "multilabel"
    monitor = "val/map"

    def __init__(  # the signature is the configuration
        self,
        model_name: str,
        num_classes: int,
        model_kwargs: dict[str, Any] | None = None,
        optimizer: OptimizerCallable = AdamW,
        schedule: Schedule = Schedule(),  # noqa: B008  # frozen
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        pos_weight: list[float] | None = None,
        init_from: str | None = None,
        freeze: list[str] | None = None,
    ) -> None:
        if pos_weight is not None and (len(pos_weight) != num_classes or min(pos_weight) <= 0):
            raise ValueError(f"expected one weight > 0 for each class, got {pos_weight=}, {num_classes=}")
        model = build_classifier(model_name, num_classes, model_kwargs)
        super().__init__(
            model,
            num_classes,
            optimizer=optimizer,
            schedule=schedule,
            weight_decay=weight_decay,
            layer_decay=layer_decay,
        )
        self._recipe = {"model_name": model_name, "model_kwargs": dict(model_kwargs or {})}
        self.pos_weight: Tensor | None
        weights = None if pos_weight is None else torch.tensor(pos_weight)
        self.register_buffer("pos_weight", weights, persistent=False)
        self.scores = torch.nn.ModuleDict({stage: _metrics(num_classes) for stage in ("val", "test")})
        self.start_from(init_from, freeze)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy, the mean over images and classes."""
        return functional.binary_cross_entropy_with_logits(logits.float(), target, pos_weight=self.pos_weight)

    def decide(self, logits: Tensor) -> Tensor:
        """Zeros and ones (B, num_classes) int64: probability above one half."""
        return (logits > 0).long()

    def recipe(self) -> dict[str, Any]:
        """Names and arguments the model was built from."""
        return {**self._recipe, "head": None, "head_kwargs": {}, "out_indices": None}

    def figures(self, confusion: Tensor, class_names: Sequence[str]) -> dict[str, float]:
        """Average precision and F1 (at one half), mean over classes and each class's.

        Args:
            confusion: (2, classes): average precision, F1; NaN where a class never occurs.
            class_names: One for each class.

        Returns:
            ``map``, ``f1``, ``ap_NAME`` and ``f1_NAME``, 0..1.
        """
        figures = {}
        for mean_name, name, values in zip(("map", "f1"), ("ap", "f1"), confusion, strict=True):
            figures[mean_name] = float(values.nanmean())
            pairs = zip(class_names, values.tolist(), strict=True)
            figures |= {f"{name}_{metric_key(label)}": value for label, value in pairs if value == value}
        return figures

    def _count(self, stage: str, batch: Sequence[Any]) -> None:
        image, target, extras, _ = Batch(*batch)
        logits = self(image, **extras)
        metrics: Any = self.scores[stage]
        for metric in metrics.values():
            metric.update(logits.float().sigmoid(), target.long())
        loss = self.loss(logits, target)
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, batch_size=image.shape[0], sync_dist=True)

    def _summarise(self, stage: str) -> None:
        metrics: Any = self.scores[stage]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No positive samples")  # such classes are left out below
            precision = metrics["precision"].compute().detach().cpu()  # (classes,)
        hits, false, _, missed, present = metrics["counts"].compute().detach().cpu().double().unbind(dim=1)
        for metric in metrics.values():
            metric.reset()
        scores = torch.stack([precision.double(), 2 * hits / (2 * hits + false + missed).clamp(min=1)])  # (2, classes)
        figures = self.figures(torch.where(present > 0, scores, torch.nan), self.class_names)
        self.log_dict({f"{stage}/{name}": value for name, value in figures.items()})


def _metrics(num_classes: int) -> torch.nn.ModuleDict:
    return torch.nn.ModuleDict(
        {
            "precision": MultilabelAveragePrecision(num_classes, average=None),
            "counts": MultilabelStatScores(num_classes, average=None),
        }
    )
