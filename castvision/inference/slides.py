"""Slides through a trained classifier of bags: probabilities, how much each tile had to say, metrics."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

import castvision
from castvision.data.datasets.slide_bags import BagFormat, bag_format, differing, find_bags
from castvision.data.reading.bags import BAG_SUFFIXES, read_bag
from castvision.inference.predictor import class_names_or_default
from castvision.metrics import classification_metrics, image_table
from castvision.models.recipe import load
from castvision.visualization import plots
from castvision.visualization.features import enlarged, heat_map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.reading.bags import Bag
    from castvision.inference.files import OutputFolder
    from castvision.models.recipe import Recipe
    from castvision.models.slide_classifier import SlideClassifier

Record = dict[str, Any]
_MOST_CELLS = 1 << 24


def name_bags(sources: Sequence[str | Path]) -> dict[Path, str]:
    """HDF5 files and those of folders, each with the name its results go under.

    Raises:
        FileNotFoundError: A source that does not exist, or a folder without any.
        ValueError: Something else, or two files of one name.
    """
    found: dict[Path, str] = {}
    for source in map(Path, sources):
        if source.is_dir():
            found |= {path: name for name, path in find_bags(source).items()}
        elif source.suffix.lower() not in BAG_SUFFIXES:
            raise ValueError(
                f"expected embeddings of slides (*.h5) for this model, got {str(source)!r}; write them by castvision "
                "embed --write tiles"
            )
        elif not source.is_file():
            raise FileNotFoundError(f"no such file of embeddings: {str(source)!r}; check the path")
        else:
            found[source] = source.stem
    if len(set(found.values())) < len(found):
        twice = next(name for name in found.values() if list(found.values()).count(name) > 1)
        raise ValueError(f"expected a name of its own for each slide, got {twice!r} twice; name their common folder")
    return found


@dataclass(frozen=True)
class SlideAnswer:
    """What a model says of a slide.

    Attributes:
        bag: The slide.
        probabilities: (classes,) float32.
        attention: (N,) float32, the weight of each tile; its sum is 1.
    """

    bag: Bag
    probabilities: np.ndarray[Any, np.dtype[np.float32]] = field(repr=False)
    attention: np.ndarray[Any, np.dtype[np.float32]] = field(repr=False)


class SlidePredictor:
    """A trained classifier of bags.

    Args:
        source: A checkpoint of ``castvision train --config slide_labels``.
        device: Where it runs.

    Attributes:
        class_names: In the order of the probabilities.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A damaged file, or a model of something else.
    """

    def __init__(self, source: str | Path, device: torch.device | str = "cpu") -> None:
        if not Path(source).is_file():
            raise FileNotFoundError(f"no such checkpoint: {str(source)!r}; check the path")
        recipe, model = load(source)
        if recipe.task != "slides":
            raise ValueError(
                f"expected a model trained on embeddings of slides for .h5 files, got a {recipe.task} model in "
                f"{str(source)!r}; train one by castvision train --config slide_labels, or give it images"
            )
        self.recipe: Recipe = recipe
        self.device = torch.device(device)
        self.model: SlideClassifier = model.to(self.device).eval()  # type: ignore[assignment]
        self.class_names = class_names_or_default(recipe.class_names, recipe.num_classes)
        seen = recipe.input
        self.format = BagFormat(self.model.in_chans, seen.encoder if seen else None, seen.mpp if seen else None)

    @torch.inference_mode()
    def predict(self, path: Path) -> SlideAnswer:
        """One slide.

        Args:
            path: Its embeddings.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Damaged, or embeddings of another model or scale than in training.
        """
        difference = differing(bag_format(path), self.format)
        if difference is not None:
            raise ValueError(
                f"expected embeddings as in training, got {difference} ({str(path)!r} and the model's training); embed "
                "the slide as the others were"
            )
        bag = read_bag(path)
        logits, weights = self.model.with_weights(torch.from_numpy(bag.features)[None].to(self.device))
        return SlideAnswer(bag, logits[0].float().softmax(0).cpu().numpy(), weights[0].cpu().numpy())


def attention_grid(answer: SlideAnswer) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The weights where the tiles lie, (rows, cols), a cell for a step between tiles; NaN where there is none.

    Raises:
        ValueError: A file without coords, or tiles that lie too far apart for a picture.
    """
    coords = answer.bag.coords
    if coords is None:
        raise ValueError(
            f"expected coords in {str(answer.bag.path)!r} to draw attention, found none; pass --no-overlay"
        )
    cells = np.rint((coords - coords.min(axis=0)) / (answer.bag.tile_step or 1)).astype(np.int64)
    cols, rows = (cells.max(axis=0) + 1).tolist()
    if rows * cols > _MOST_CELLS:
        raise ValueError(f"expected tiles on a grid in {str(answer.bag.path)!r}, got coords that lie on none")
    grid = np.full((rows, cols), np.nan, np.float32)
    np.fmax.at(grid, (cells[:, 1], cells[:, 0]), answer.attention)
    return grid


def attention_geojson(answer: SlideAnswer) -> str:
    """The tiles as squares in pixels of the full image, each with its "attention", for QuPath and GIS programs.

    Raises:
        ValueError: A file without coords.
    """
    coords, side = answer.bag.coords, answer.bag.tile_side
    if coords is None or side is None:
        raise ValueError(f"expected coords in {str(answer.bag.path)!r} for --geojson, found none; leave it out")
    lines = []
    for (x, y), weight in zip(coords.tolist(), answer.attention.tolist(), strict=True):
        ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
        properties = {"objectType": "tile", "attention": weight, "measurements": {"attention": weight}}
        shape = {"type": "Polygon", "coordinates": [ring]}
        lines.append(json.dumps({"type": "Feature", "geometry": shape, "properties": properties}))
    return '{"type": "FeatureCollection", "features": [\n' + ",\n".join(lines) + "\n]}\n"


class SlideRun:
    """Predicts slides one by one and keeps their records.

    Args:
        predictor: The model.
        output: Where to write.
        picture: Draw attention.
        geojson: Write it as squares.
    """

    def __init__(
        self, predictor: SlidePredictor, output: OutputFolder, *, picture: bool = True, geojson: bool = False
    ) -> None:
        self.predictor, self.output, self.picture, self.geojson = predictor, output, picture, geojson
        self.records: list[Record] = []

    def predict(self, path: Path, name: str) -> Record:
        """Predict a slide and write what it looked at.

        Args:
            path: Its embeddings.
            name: What its files are called.

        Returns:
            Its most probable class and all probabilities.

        Raises:
            Exception: Any of `castvision.errors.FAILURES`.
        """
        answer = self.predictor.predict(path)
        files = []
        if self.picture:
            files.append(f"attention/{name}.png")
            picture = enlarged(heat_map(attention_grid(answer)), 1)
            with self.output.draft(files[-1]) as draft:
                Image.fromarray(picture).save(draft, "PNG", compress_level=3)
        if self.geojson:
            files.append(f"attention/{name}.geojson")
            self.output.write_text(files[-1], attention_geojson(answer))
        names, best = self.predictor.class_names, int(answer.probabilities.argmax())
        listed = zip(names, answer.probabilities.tolist(), strict=True)
        record = {
            "slide": str(path),
            "name": name,
            "tiles": len(answer.attention),
            "prediction": names[best],
            "probabilities": {each: round(value, 6) for each, value in listed},
            "files": files,
        }
        self.records.append(record)
        return record

    def write_tables(self, failed: list[dict[str, str]]) -> None:
        """Write predictions.csv and summary.json.

        Args:
            failed: Slide and error of those that could not be predicted.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(
            ["slide", "tiles", "prediction", *(f"probability_{name}" for name in self.predictor.class_names)]
        )
        for record in self.records:
            writer.writerow([record["name"], record["tiles"], record["prediction"], *record["probabilities"].values()])
        self.output.write_text("predictions.csv", text.getvalue())
        summary = {
            "castvision": castvision.__version__,
            "model": self.predictor.recipe.model_name,
            "task": "slides",
            "classes": list(self.predictor.class_names),
            "slides": self.records,
            "failed": failed,
        }
        self.output.write_text("summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


class SlideEvaluation:
    """Measures a model slide by slide.

    Args:
        predictor: The model.
        truth: The label of each slide.

    Raises:
        ValueError: Labels that are no class of the model.
    """

    def __init__(self, predictor: SlidePredictor, truth: dict[Path, str]) -> None:
        unknown = sorted(set(truth.values()) - set(predictor.class_names))
        if unknown:
            raise ValueError(
                f"expected the labels {', '.join(predictor.class_names[:8])} of the model, got {', '.join(unknown[:8])}"
            )
        self.predictor, self.truth = predictor, truth
        classes = len(predictor.class_names)
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.records: list[Record] = []

    def measure(self, path: Path) -> None:
        """Predict one of the slides and count.

        Raises:
            Exception: Any of `castvision.errors.FAILURES`; the slide is not counted then.
        """
        names, wanted = self.predictor.class_names, self.truth[path]
        probabilities = self.predictor.predict(path).probabilities
        truth, best = names.index(wanted), int(probabilities.argmax())
        self.confusion[truth, best] += 1
        facts = {
            "truth": wanted,
            "prediction": names[best],
            "probability_of_truth": round(float(probabilities[truth]), 6),
        }
        self.records.append({"slide": str(path), **facts})

    def write(
        self, output: OutputFolder, failed: list[dict[str, str]]
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Write metrics.json and confusion.png.

        Args:
            output: Where to write.
            failed: Slide and error of those that could not be measured.

        Returns:
            A row of metrics for each class, and those of all slides.
        """
        names = self.predictor.class_names
        rows, totals = image_table(self.confusion, names), classification_metrics(self.confusion, names)
        content = {
            "castvision": castvision.__version__,
            "model": self.predictor.recipe.model_name,
            "task": "slides",
            "metrics": totals,
            "classes": rows,
            "confusion": self.confusion.tolist(),
            "slides": self.records,
            "failed": failed,
        }
        output.write_text("metrics.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        picture = plots.plot_confusion(self.confusion.numpy(), names, self.predictor.recipe.model_name)
        output.write("confusion.png", plots.as_png(picture))
        return rows, totals
