"""Predictions against known answers: the work of ``castvision evaluate``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

import castvision
from castvision.data import open_image, open_mask
from castvision.inference.prediction_options import FAILURES
from castvision.inference.prediction_report import make_progress
from castvision.inference.showing import has_background
from castvision.inference.tile_model import TileModel, model_range
from castvision.inference.tiled import tiled_inference
from castvision.inference.writers.preview import read_reduced
from castvision.losses import IGNORED
from castvision.metrics import BoundaryF1, class_table, classification_metrics, segmentation_metrics
from castvision.visualization import figures, pictures
from castvision.visualization.figures import Panel

if TYPE_CHECKING:
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


def evaluate_images(
    images: dict[Path, str],
    masks: dict[Path, Path],
    predictor: Predictor,
    output: OutputFolder,
    tiles: dict[str, Any],
) -> int:
    """Measure a model.

    Args:
        images: Each image and its name.
        masks: Each image's mask; empty for a classification, whose truth is the image's folder.
        predictor: The model.
        output: Where to write.
        tiles: Keywords of `tiled_inference`.

    Returns:
        0 if all images were measured, else 1.

    Raises:
        ValueError: An untrained model, masks for a classification model or none for a segmentation model, folders that
            are no classes.
    """
    task = _check_task(predictor, masks)
    truth = {} if masks else _classes_by_folder(images, predictor.class_names)
    classes = len(predictor.class_names)
    tally = Tally(torch.zeros(classes, classes, dtype=torch.int64), BoundaryF1(classes) if masks else None)
    failed: list[dict[str, str]] = []
    console = Console()
    with make_progress(console) as progress:
        bar = progress.add_task("images", total=len(images))
        for path in images:
            try:
                with open_image(path) as reader:
                    if task == "classification":
                        _classify(path, reader, truth[path], predictor, tally)
                    else:
                        _segment(path, reader, masks[path], predictor, tally, tiles)
            except FAILURES as error:
                failed.append({"image": str(path), "error": " ".join(str(error).split()) or type(error).__name__})
            progress.advance(bar)
    if tally.records:
        _write(tally, failed, predictor, output, console)
    console.print(f"{len(tally.records)} of {len(images)} images measured", soft_wrap=True)
    for entry in failed:
        console.print(f"[red]failed {escape(entry['image'])}[/]: {escape(entry['error'])}", soft_wrap=True)
    return 1 if failed else 0


def _check_task(predictor: Predictor, masks: dict[Path, Path]) -> str:
    task = predictor.parts.task
    if task is None:
        raise ValueError(f"{predictor.parts.name} is untrained: there is nothing to measure; give a checkpoint")
    if (task == "segmentation") != bool(masks):
        needed = "needs --masks" if task == "segmentation" else "takes folders of classes, no --masks"
        raise ValueError(f"{predictor.parts.name} is a {task} model: it {needed}")
    return task


def _classes_by_folder(images: dict[Path, str], class_names: tuple[str, ...]) -> dict[Path, int]:
    folders = {path: name.split("/")[0] if "/" in name else path.parent.name for path, name in images.items()}
    unknown = sorted(set(folders.values()) - set(class_names))
    if unknown:
        known = ", ".join(class_names[:10])
        raise ValueError(f"expected one folder for each class ({known}), found {', '.join(unknown[:5])}")
    return {path: class_names.index(folder) for path, folder in folders.items()}


def _classify(path: Path, reader: ImageReader, truth: int, predictor: Predictor, tally: Tally) -> None:
    image = read_reduced(reader, 4096)
    probabilities = predictor.predict(predictor.prepare(image)).probabilities
    names, best = predictor.class_names, int(probabilities.argmax())
    tally.confusion[truth, best] += 1
    score = float(probabilities[truth])
    title = f"{figures.shorten(path.name, 30)}\n{names[truth]}: {score:.1%}; taken for {names[best]}"
    panel = Panel(title, pictures.display_picture(image, max_side=_PANEL))
    facts = {"truth": names[truth], "prediction": names[best], "probability_of_truth": round(score, 6)}
    tally.add(path, score, [panel], **facts)


def _segment(
    path: Path, reader: ImageReader, mask_path: Path, predictor: Predictor, tally: Tally, tiles: dict[str, Any]
) -> None:
    with open_mask(mask_path) as mask:
        if (mask.height, mask.width) != (reader.height, reader.width):
            raise ValueError(
                f"expected a mask of the image's size {reader.height} × {reader.width}, "
                f"got {mask.height} × {mask.width}: {str(mask_path)!r}"
            )
        check_labels(mask, len(predictor.class_names))
        model = TileModel(predictor, reader.channels, model_range(predictor, reader))
        result = tiled_inference(reader, model, device=predictor.device, **tiles)
        if result.labels is None:
            raise RuntimeError("tiled_inference gave no labels")
        confusion = compare(result.labels, mask, tally)
        figures_of_image = segmentation_metrics(confusion, predictor.class_names)
        panels = _panels(path, (reader, mask, result.labels), figures_of_image["miou"], predictor.class_names)
    facts = {"miou": round(figures_of_image["miou"], 6), "pixel_acc": round(figures_of_image["pixel_acc"], 4)}
    tally.add(path, figures_of_image["miou"], panels, **facts)


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
    path: Path, parts: tuple[ImageReader, ImageReader, Labels], miou: float, names: tuple[str, ...]
) -> list[Panel]:
    reader, mask, labels = parts
    picture = pictures.display_picture(read_reduced(reader, _PANEL), max_side=_PANEL)
    size = (picture.shape[0], picture.shape[1])
    step = max(1, max(labels.shape) // _PANEL)
    rows = [mask.read(y, 0, 1, mask.width)[0, ::step, 0] for y in range(0, mask.height, step)]
    truth, predicted = np.stack(rows).astype(np.int64), labels[::step, ::step].astype(np.int64)
    truth[truth == IGNORED] = -1
    predicted[predicted == np.iinfo(labels.dtype).max] = -1
    right = np.where((truth < 0) | (predicted < 0), -1, truth == predicted).astype(np.int64)
    untinted = 0 if has_background(names) else None
    shown = {"truth": (truth, untinted), f"prediction, mIoU {miou:.3f}": (predicted, untinted), "errors": (right, 1)}
    overlays = [
        Panel(title, pictures.overlay_labels(picture, pictures.resize_labels(values, size), untinted=kept))
        for title, (values, kept) in shown.items()
    ]
    return [Panel(figures.shorten(path.name, 30), picture), *overlays]


def _write(
    tally: Tally, failed: list[dict[str, str]], predictor: Predictor, output: OutputFolder, console: Console
) -> None:
    names = predictor.class_names
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
        "model": predictor.parts.name,
        "task": predictor.parts.task,
        "metrics": {name: None if math.isnan(value) else value for name, value in totals.items()},
        "classes": rows,
        "confusion": tally.confusion.tolist(),
        "images": tally.records,
        "failed": failed,
    }
    output.write("metrics.json", (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    figure = figures.confusion_figure(tally.confusion.numpy(), names, figures.shorten(predictor.parts.name, 48))
    output.write("confusion.png", figures.save_figure(figure))
    sheet = figures.contact_sheet([panels for _, panels in tally.worst], f"the {len(tally.worst)} worst images")
    output.write("worst.png", figures.save_figure(sheet))
    _show(rows, totals, console)


def _show(rows: list[dict[str, Any]], totals: dict[str, float], console: Console) -> None:
    columns = [key for key in rows[0] if key != "name"]
    table = Table(title=None)
    table.add_column("class")
    for column in columns:
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(escape(str(row["name"])), *(_text(row[column]) for column in columns))
    console.print(table)
    overall = {name: value for name, value in totals.items() if not name.startswith(("iou_", "acc_"))}
    console.print(", ".join(f"{name} {value:.4g}" for name, value in overall.items()), soft_wrap=True)


def _text(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
