"""A model's predictions against known answers: metrics of the whole data set, of each class and of each image."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

import castvision
from castvision.data import open_mask
from castvision.inference.tile_model import TileModel, model_range, open_for
from castvision.inference.tiled import tiled_inference
from castvision.inference.writers.preview import read_reduced
from castvision.losses import IGNORED
from castvision.metrics import BoundaryF1, class_table, classification_metrics, segmentation_metrics
from castvision.visualization import pictures, plots
from castvision.visualization.plots import Panel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from castvision.data import ImageReader
    from castvision.inference.files import OutputFolder
    from castvision.inference.predictor import Predictor

Labels = np.ndarray[Any, np.dtype[Any]]
_WORST = 20
_PANEL = 384
_BAND_PIXELS = 1 << 24


@dataclass
class Tally:
    """What is counted over the data set.

    Attributes:
        confusion: (classes, classes) counts, rows = truth.
        boundary: Contours; None for a classification.
        records: One for each image, for metrics.json.
        worst: (score, rows of the contact sheet) of the images with the lowest scores.
    """

    confusion: Tensor
    boundary: BoundaryF1 | None
    records: list[dict[str, Any]] = field(default_factory=list)
    worst: list[tuple[float, list[Panel]]] = field(default_factory=list)

    def add(self, path: Path, score: float, panels: list[Panel], **facts: Any) -> None:
        """Note an image."""
        self.records.append({"image": str(path), **facts})
        self.worst = sorted([*self.worst, (score, panels)], key=lambda pair: pair[0])[:_WORST]


class Evaluation:
    """Measures a model image by image.

    Args:
        predictor: The model.
        images: Each image and its name.
        masks: Each image's mask; empty for a classification, whose truth is the image's folder.
        tiles: Keywords of `tiled_inference`.
        bands: Channels to read; None = those the model was trained on. See `open_for`.

    Raises:
        ValueError: An untrained model, masks for a classification model or none for a segmentation model, folders that
            are no classes.
    """

    def __init__(
        self,
        predictor: Predictor,
        images: dict[Path, str],
        masks: dict[Path, Path],
        tiles: dict[str, Any],
        bands: Sequence[int] | None = None,
    ) -> None:
        task, names = predictor.parts.task, predictor.class_names
        if task is None:
            raise ValueError(f"{predictor.parts.name} is untrained: there is nothing to measure; give a checkpoint")
        if (task == "segmentation") != bool(masks):
            needed = "needs --masks" if task == "segmentation" else "takes folders of classes, no --masks"
            raise ValueError(f"{predictor.parts.name} is a {task} model: it {needed}")
        self.truth: dict[Path, int] = {}
        if not masks:
            folders = {path: name.split("/")[0] if "/" in name else path.parent.name for path, name in images.items()}
            unknown = sorted(set(folders.values()) - set(names))
            if unknown:
                known = ", ".join(names[:10])
                raise ValueError(f"expected one folder for each class ({known}), found {', '.join(unknown[:5])}")
            self.truth = {path: names.index(folder) for path, folder in folders.items()}
        self.predictor, self.masks, self.tiles, self.bands = predictor, masks, tiles, bands
        confusion = torch.zeros(len(names), len(names), dtype=torch.int64)
        self.tally = Tally(confusion, BoundaryF1(len(names)) if masks else None)

    def measure(self, path: Path, progress: bool | Callable[[int, int], None] = False) -> None:
        """Predict one of the images and count.

        Args:
            path: The image.
            progress: See `tiled_inference`.

        Raises:
            Exception: Any of `castvision.errors.FAILURES`; the image then has no record.
        """
        with open_for(self.predictor, path, self.bands) as reader:
            if self.masks:
                self._segment(path, reader, progress)
            else:
                self._classify(path, reader)

    def _classify(self, path: Path, reader: ImageReader) -> None:
        image, truth = read_reduced(reader, 4096), self.truth[path]
        probabilities = self.predictor.predict(self.predictor.prepare(image)).probabilities
        names, best = self.predictor.class_names, int(probabilities.argmax())
        self.tally.confusion[truth, best] += 1
        score = float(probabilities[truth])
        title = f"{plots.shorten(path.name, 30)}\n{names[truth]}: {score:.1%}; taken for {names[best]}"
        panel = Panel(title, pictures.display_picture(image, max_side=_PANEL))
        facts = {"truth": names[truth], "prediction": names[best], "probability_of_truth": round(score, 6)}
        self.tally.add(path, score, [panel], **facts)

    def _segment(self, path: Path, reader: ImageReader, progress: bool | Callable[[int, int], None]) -> None:
        with open_mask(self.masks[path]) as mask:
            if (mask.height, mask.width) != (reader.height, reader.width):
                raise ValueError(
                    f"expected a mask of the image's size {reader.height} × {reader.width}, "
                    f"got {mask.height} × {mask.width}: {str(self.masks[path])!r}"
                )
            names = self.predictor.class_names
            check_labels(mask, len(names))
            model = TileModel(self.predictor, reader.channels, model_range(self.predictor, reader))
            result = tiled_inference(reader, model, device=self.predictor.device, progress=progress, **self.tiles)
            if result.labels is None:
                raise RuntimeError("tiled_inference gave no labels")
            metrics = segmentation_metrics(compare(result.labels, mask, self.tally), names)
            panels = _panels(path, reader, mask, result.labels, names, metrics["miou"])
        facts = {"miou": round(metrics["miou"], 6), "pixel_acc": round(metrics["pixel_acc"], 4)}
        self.tally.add(path, metrics["miou"], panels, **facts)

    def write(
        self, output: OutputFolder, failed: list[dict[str, str]]
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Write metrics.json, confusion.png and worst.png, once at least one image is measured.

        Args:
            output: Where to write.
            failed: Image and error of the images that could not be measured.

        Returns:
            A row of metrics for each class, and those of all images.
        """
        tally, names, name = self.tally, self.predictor.class_names, self.predictor.parts.name
        rows = class_table(tally.confusion, names)
        if tally.boundary is None:
            totals = classification_metrics(tally.confusion, names)
        else:
            totals = segmentation_metrics(tally.confusion, names)
            contours = tally.boundary.compute()
            totals["boundary_f1"] = float(contours.nanmean())
            for row, value in zip(rows, contours.tolist(), strict=True):
                row["boundary_f1"] = None if math.isnan(value) else value
        content = {
            "castvision": castvision.__version__,
            "model": name,
            "task": self.predictor.parts.task,
            "metrics": {key: None if math.isnan(value) else value for key, value in totals.items()},
            "classes": rows,
            "confusion": tally.confusion.tolist(),
            "images": tally.records,
            "failed": failed,
        }
        output.write("metrics.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        confusion = plots.plot_confusion(tally.confusion.numpy(), names, plots.shorten(name, 48))
        output.write("confusion.png", plots.as_png(confusion))
        sheet = plots.plot_rows([panels for _, panels in tally.worst], f"the {len(tally.worst)} worst images")
        output.write("worst.png", plots.as_png(sheet))
        return rows, totals


def _bands(mask: ImageReader) -> list[tuple[int, int]]:
    rows = max(1, _BAND_PIXELS // mask.width)
    return [(y, min(rows, mask.height - y)) for y in range(0, mask.height, rows)]


def check_labels(mask: ImageReader, classes: int) -> None:
    """Refuse a mask with labels no class has, before any work.

    Raises:
        ValueError: It names the labels.
    """
    found: set[int] = set()
    for y, rows in _bands(mask):
        found.update(np.unique(mask.read(y, 0, rows, mask.width)).tolist())
    unknown = sorted(label for label in found if not 0 <= label < classes and label != IGNORED)
    if unknown:
        raise ValueError(
            f"expected labels 0..{classes - 1} and {IGNORED} (ignored) in {mask.name!r}, found {unknown[:10]}; "
            "change the mask, or train with more classes"
        )


def compare(labels: Labels, mask: ImageReader, tally: Tally) -> Tensor:
    """Count one image's pixels, band by band.

    Args:
        labels: (height, width), the largest value of the dtype = no prediction, which is not counted.
        mask: The truth.
        tally: Where it is added up.

    Returns:
        (classes, classes) counts of this image.
    """
    classes = len(tally.confusion)
    confusion = torch.zeros_like(tally.confusion)
    for y, rows in _bands(mask):
        truth = torch.from_numpy(mask.read(y, 0, rows, mask.width)[..., 0].astype(np.int64))
        predicted = torch.from_numpy(labels[y : y + rows].astype(np.int64))
        truth[predicted == np.iinfo(labels.dtype).max] = IGNORED
        predicted = predicted.clamp(max=classes - 1)
        confusion += multiclass_confusion_matrix(predicted, truth, classes, ignore_index=IGNORED)
        if tally.boundary is not None:
            # NOTE: images of more than 16 megapixels have several bands; contours at their edges may miss a partner
            tally.boundary.update(predicted[None], truth[None])
    tally.confusion += confusion
    return confusion


def _panels(
    path: Path, reader: ImageReader, mask: ImageReader, labels: Labels, names: tuple[str, ...], miou: float
) -> list[Panel]:
    picture = pictures.display_picture(read_reduced(reader, _PANEL), max_side=_PANEL)
    step = max(1, max(labels.shape) // _PANEL)
    rows = [mask.read(y, 0, 1, mask.width)[0, ::step, 0] for y in range(0, mask.height, step)]
    truth, predicted = np.stack(rows).astype(np.int64), labels[::step, ::step].astype(np.int64)
    truth[truth == IGNORED] = -1
    predicted[predicted == np.iinfo(labels.dtype).max] = -1
    right = np.where((truth < 0) | (predicted < 0), -1, truth == predicted).astype(np.int64)
    background = pictures.background_class(names)
    shown = {
        "truth": (truth, background),
        f"prediction, mIoU {miou:.3f}": (predicted, background),
        "errors": (right, 1),
    }
    size = (picture.shape[0], picture.shape[1])
    overlays = [
        Panel(title, pictures.overlay_labels(picture, pictures.resize_labels(values, size), untinted=kept))
        for title, (values, kept) in shown.items()
    ]
    return [Panel(plots.shorten(path.name, 30), picture), *overlays]
