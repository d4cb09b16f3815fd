"""A model's predictions against known answers: metrics of the whole data set, of each class and of each image."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

import castvision
from castvision.data import open_array
from castvision.data.reading.labels import ClassReader
from castvision.ignored import IGNORED
from castvision.inference.fitted import FittedModel
from castvision.inference.instances.measuring import ObjectMeasure
from castvision.inference.instances.quality import PanopticTally
from castvision.inference.panels import PANEL, panels_of
from castvision.inference.prediction import CLASSIFIER_SIDE
from castvision.inference.scale import level_to_work_at, mask_at_level
from castvision.inference.suited import check_measurable
from castvision.inference.tile_model import open_for, tile_model_for, whole_in_a_tile
from castvision.inference.tiled import tiled_inference
from castvision.inference.truth import bands_of, check_labels, check_two_classes, folders_as_classes, meaning_of_labels
from castvision.inference.values import remark_on_values
from castvision.inference.whole_images import remark_on_size, whole_image
from castvision.inference.writers.preview import read_reduced
from castvision.metrics import (
    BoundaryF1,
    MultiLabelScores,
    boundary_f1,
    classification_metrics,
    image_table,
    multilabel_metrics,
    pixel_table,
    segmentation_metrics,
)
from castvision.visualization import pictures, plots
from castvision.visualization.legend import Entry, class_entries, shorten
from castvision.visualization.plots import Panel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from castvision.data import ImageReader
    from castvision.data.datasets.multilabel import LabelTable
    from castvision.data.datasets.vector_labels import VectorMask
    from castvision.inference.files import OutputFolder
    from castvision.inference.instances.finding import InstanceOptions
    from castvision.inference.predictor import Predictor
    from castvision.inference.tiled import TiledResult

    Truth = ImageReader | ClassReader

Labels = np.ndarray[Any, np.dtype[Any]]
_WORST = 20


@dataclass
class Tally:
    """What is counted over the data set.

    Attributes:
        confusion: (classes, classes) counts, rows = truth; all 0 where images have several labels.
        boundary: Contours; None for whole images.
        labels: Scores of several labels for an image, and (classes,) how many images have each; None for one class.
        records: One for each image, for metrics.json.
        worst: (score, rows of the contact sheet) of the images with the lowest scores.
        answers: Of several labels for an image: what was said and what is true, (classes,) each, of every image.
        objects: Matches of objects; None where they are not measured.
    """

    confusion: Tensor
    boundary: BoundaryF1 | None
    labels: tuple[MultiLabelScores, Tensor] | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    worst: list[tuple[float, list[Panel]]] = field(default_factory=list)
    answers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    objects: PanopticTally | None = None

    def empty(self) -> Tally:
        """One of the same kind of which nothing is counted."""
        classes = len(self.confusion)
        labels = None if self.labels is None else (MultiLabelScores(classes), torch.zeros_like(self.labels[1]))
        boundary = None if self.boundary is None else BoundaryF1(classes)
        objects = None if self.objects is None else PanopticTally(classes)
        return Tally(torch.zeros_like(self.confusion), boundary, labels, objects=objects)

    def answer(self, said: Tensor, truth: Tensor) -> None:
        """Count the labels of an image."""
        if self.labels is None:
            raise ValueError("expected a tally of several labels for an image")
        self.labels[0].update(said[None], truth[None])
        self.labels[1].add_(truth)
        self.answers.append((said, truth))

    def merge(self, more: Tally) -> None:
        """Add what was counted of other images."""
        self.confusion += more.confusion
        if self.boundary is not None and more.boundary is not None:
            self.boundary.counts += more.boundary.counts
        if self.objects is not None and more.objects is not None:
            self.objects.merge(more.objects)
        for said, truth in more.answers:
            self.answer(said, truth)
        self.records += more.records
        self.worst = sorted([*self.worst, *more.worst], key=lambda pair: pair[0])[:_WORST]

    def add(self, path: Path, score: float, panels: list[Panel], **facts: Any) -> None:
        """Note an image."""
        self.records.append({"image": str(path), **facts})
        self.worst = sorted([*self.worst, (score, panels)], key=lambda pair: pair[0])[:_WORST]


class Evaluation:
    """Measures a model image by image.

    Args:
        predictor: The model.
        images: Each image and its name.
        masks: Each image's mask, a file or drawn from polygons and points of the model's classes (see
            `castvision.data.datasets.vector_labels`); empty for a classification, whose truth is the image's folder.
        tiles: Keywords of `tiled_inference`.
        label_map: What the masks' labels mean, see `LabelMap`; None = what they meant in training.
        table: The labels of the images, in the order of the model's classes, for a model of several labels.
        mpp: Microns or ground units per pixel to work at; None = as in training, see `level_to_work_at`.
        fits: Show a model that was trained on whole images brought to one size whole images, and count at that size,
            as training does.
        bands: Channels to read; None = those the model was trained on. See `open_for`.
        instances: Measure single objects, too, found so.
        references: For each image its mask of objects, then.

    Raises:
        ValueError: An untrained model, another kind of truth than it needs, folders that are no classes, a label map
            that does not fit, or masks of one class and ignored pixels.
    """

    def __init__(
        self,
        predictor: Predictor,
        images: dict[Path, str],
        masks: Mapping[Path, Path | VectorMask],
        tiles: dict[str, Any],
        label_map: Mapping[int | str, int | str] | None = None,
        table: LabelTable | None = None,
        mpp: float | None = None,
        fits: bool = False,
        bands: Sequence[int] | None = None,
        instances: InstanceOptions | None = None,
        references: Mapping[Path, Path] | None = None,
    ) -> None:
        task, names = predictor.parts.task, predictor.class_names
        has = {"has_masks": bool(masks), "has_table": table is not None, "has_label_map": label_map is not None}
        check_measurable(predictor.parts.name, task, **has)
        self.truth = folders_as_classes(images, names) if task == "classification" else {}
        self.predictor, self.masks, self.tiles, self.mpp, self.fits = predictor, masks, tiles, mpp, fits
        self.bands = bands
        if fits and (tiles.get("tta", "none") != "none" or tiles.get("precision", "fp32") != "fp32"):
            raise ValueError(
                f"{predictor.parts.name} was trained on whole images and is measured as training does: "
                "leave out --tta and --precision, or give --tile"
            )
        confusion = torch.zeros(len(names), len(names), dtype=torch.int64)
        self.tally = Tally(confusion, BoundaryF1(len(names)) if masks else None)
        self.objects = None if instances is None else ObjectMeasure(predictor, instances, references or {}, tiles, fits)
        if self.objects is not None:
            self.tally.objects = PanopticTally(len(names))
        self.present: dict[Path, Tensor] = {}
        if table is not None:
            self.present = dict(zip(table.images, torch.from_numpy(table.targets).long(), strict=True))
            self.tally.labels = MultiLabelScores(len(names)), torch.zeros(len(names), dtype=torch.int64)
        files = [mask for mask in masks.values() if isinstance(mask, Path)]
        if files:
            self.labels = meaning_of_labels(files, names, label_map, predictor.parts.label_map)
            check_two_classes(files, self.labels)

    def measure(self, path: Path, progress: bool | Callable[[int, int], None] = False) -> str | None:
        """Predict one of the images and count.

        Args:
            path: The image.
            progress: See `tiled_inference`.

        Returns:
            What a person is to be told of its scale and values; None where there is nothing to say.

        Raises:
            Exception: Any of `castvision.errors.FAILURES`; the image then has no record.
        """
        with open_for(self.predictor, path, self.bands) as reader:
            told = None
            if self.masks:
                told = self._segment(path, reader, progress)
            elif self.tally.labels is not None:
                self._label(path, reader)
            else:
                self._classify(path, reader)
            remarks = [one for one in (told, remark_on_values(reader, self.predictor.parts.input)) if one]
        return f"{path}: {'; '.join(remarks)}" if remarks else None

    def _classify(self, path: Path, reader: ImageReader) -> None:
        image, truth = read_reduced(reader, CLASSIFIER_SIDE), self.truth[path]
        probabilities = self.predictor.predict(self.predictor.prepare_whole(image)).probabilities
        names, best = self.predictor.class_names, int(probabilities.argmax())
        self.tally.confusion[truth, best] += 1
        score = float(probabilities[truth])
        title = f"{shorten(path.name, 30)}\n{names[truth]}: {score:.3f}; taken for {names[best]}"
        panel = Panel(title, pictures.display_picture(image, max_side=PANEL))
        facts = {"truth": names[truth], "prediction": names[best], "probability_of_truth": round(score, 6)}
        self.tally.add(path, score, [panel], **facts)

    def _label(self, path: Path, reader: ImageReader) -> None:
        image, truth = read_reduced(reader, CLASSIFIER_SIDE), self.present[path]
        probabilities = self.predictor.predict(self.predictor.prepare_whole(image)).probabilities
        self.tally.answer(probabilities, truth)
        names = self.predictor.class_names
        found, wanted = (
            [name for name, is_there in zip(names, which.tolist(), strict=True) if is_there]
            for which in (probabilities > 0.5, truth > 0)
        )
        score = 1 - float((probabilities - truth).abs().mean())
        title = f"{shorten(path.name, 30)}\n{', '.join(wanted) or 'none'}; taken for {', '.join(found) or 'none'}"
        listed = {name: round(value, 6) for name, value in zip(names, probabilities.tolist(), strict=True)}
        panel = Panel(title, pictures.display_picture(image, max_side=PANEL))
        self.tally.add(path, score, [panel], truth=wanted, prediction=found, probabilities=listed)

    def _segment(self, path: Path, reader: ImageReader, progress: bool | Callable[[int, int], None]) -> str | None:
        level, told = level_to_work_at(reader, self.mpp, self.predictor.parts.input)
        source = self.masks[path]
        with ClassReader(source, self.labels) if isinstance(source, Path) else source.open() as stored:
            mask = mask_at_level(stored, reader, level)
            names = self.predictor.class_names
            check_labels(mask, len(names))
            more: dict[str, Any] = {}
            if self.fits:
                labels, mask = self._fitted(reader, mask, level)
            elif self.objects is not None:
                labels, more = self._with_objects(self.objects, path, reader, mask, level, progress)
            else:
                labels = np.asarray(self._tiled(reader, level, progress).labels)
            metrics = segmentation_metrics(compare(labels, mask, self.tally), names)
            panels = panels_of(path, reader, mask, labels, names, metrics["miou"])
        mpp = None if reader.mpp is None else reader.mpp * reader.levels[level].downsample
        is_labelled = not math.isnan(metrics["miou"])
        facts = {name: round(metrics[name], 6) if is_labelled else None for name in ("miou", "pixel_acc")} | more
        self.tally.add(path, metrics["miou"] if is_labelled else math.inf, panels, **facts, level=level, mpp=mpp)
        return told or remark_on_size(self.predictor, reader, level, self.fits)

    def _tiled(
        self, reader: ImageReader, level: int, progress: bool | Callable[[int, int], None], **into: Any
    ) -> TiledResult:
        model = tile_model_for(self.predictor, reader, level, centres=into.get("output") == "image")
        size = (reader.levels[level].height, reader.levels[level].width)
        how = {**whole_in_a_tile(self.predictor, self.tiles, size), **into}
        return tiled_inference(reader, model, level=level, device=self.predictor.device, progress=progress, **how)

    def _with_objects(
        self, objects: ObjectMeasure, path: Path, reader: ImageReader, mask: Truth, level: int, progress: Any
    ) -> tuple[Labels, dict[str, Any]]:
        """Labels, and what is counted of the image's objects, for its record."""
        labels, *found = objects.predicted(
            lambda sink: self._tiled(reader, level, progress, output=objects.kind, sink=sink)
        )
        truth = mask.read(0, 0, mask.height, mask.width)[..., 0].astype(np.uint8)
        counts = objects.compare(path, reader, level, labels, (found[0], found[1]), truth)
        if self.tally.objects is not None:
            self.tally.objects.merge(counts)
        return labels, counts.facts(objects.things)

    def _fitted(self, reader: ImageReader, mask: Truth, level: int) -> tuple[Labels, ImageReader]:
        """Labels and truth at the size the model is shown."""
        height, width = whole_image(reader, level)["tile"]
        pixels = reader.read_masked(0, 0, height, width, level)
        truth = mask.read(0, 0, height, width)[..., 0].astype(np.uint8)
        labels, target = FittedModel(self.predictor, reader.dtype, reader.name).measure(pixels, truth)
        return labels, open_array(target)

    def write(
        self, output: OutputFolder, failed: list[dict[str, str]]
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Write metrics.json, worst.png and, unless images have several labels, confusion.png, once one is measured.

        Args:
            output: Where to write.
            failed: Image and error of the images that could not be measured.

        Returns:
            A row of metrics for each class, and those of all images.
        """
        tally, names, name = self.tally, self.predictor.class_names, self.predictor.parts.name
        rows: list[dict[str, Any]]
        if tally.labels is not None:
            values = tally.labels[0].compute()
            rows, totals = _label_rows(values, tally.labels[1], names), multilabel_metrics(values, names)
        elif tally.boundary is None:
            rows = [*image_table(tally.confusion, names)]
            totals = classification_metrics(tally.confusion, names)
        else:
            rows = [*pixel_table(tally.confusion, names)]
            totals = segmentation_metrics(tally.confusion, names)
            contours = boundary_f1(tally.boundary.counts)
            totals["boundary_f1"] = float(contours.nanmean())
            for row, value in zip(rows, contours.tolist(), strict=True):
                row["boundary_f1"] = None if math.isnan(value) else value
            if tally.objects is not None and self.objects is not None:
                totals |= tally.objects.means(self.objects.things)
                tally.objects.describe(rows, self.objects.things)
        content = {
            "castvision": castvision.__version__,
            "model": name,
            "task": self.predictor.parts.task,
            "metrics": {key: None if math.isnan(value) else value for key, value in totals.items()},
            "classes": rows,
            "confusion": None if tally.labels else tally.confusion.tolist(),
            "images": tally.records,
            "failed": failed,
        }
        output.write_text("metrics.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        if tally.labels is None:
            confusion = plots.plot_confusion(tally.confusion.numpy(), names, shorten(name, 48))
            output.write("confusion.png", plots.as_png(confusion))
        rows_of_panels = [panels for _, panels in tally.worst]
        heading = f"the {len(tally.worst)} worst images"
        sheet = plots.plot_rows(rows_of_panels, heading, self._legend())
        output.write("worst.png", plots.as_png(sheet))
        return rows, totals

    def _legend(self) -> list[Entry]:
        """Of the classes in the panels of masks; none for whole images."""
        if self.tally.boundary is None:
            return []
        names = self.predictor.class_names
        is_seen = (self.tally.confusion.sum(dim=0) + self.tally.confusion.sum(dim=1)) > 0
        present = [*is_seen.nonzero()[:, 0].tolist(), -1]
        return class_entries(present, names, pictures.background_class(names), "ignored, no data")


def _label_rows(scores: Tensor, counts: Tensor, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each class: average precision, F1, and how many images have the label."""
    columns = zip(names, *scores.tolist(), counts.tolist(), strict=True)
    return [
        {"name": name, "ap": None if math.isnan(ap) else ap, "f1": None if math.isnan(f1) else f1, "count": count}
        for name, ap, f1, count in columns
    ]


def compare(labels: Labels, mask: Truth, tally: Tally) -> Tensor:
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
    for y, rows in bands_of(mask):
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
