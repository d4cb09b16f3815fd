"""Images through a model, pictures to a folder: the demo's work."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import castvision
from castvision.data.reading.pixels import Pixels, stretch_range
from castvision.data.reading.whole import read_image
from castvision.visualization import figures, pictures
from castvision.visualization.figures import Panel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from castvision.inference.files import OutputFolder
    from castvision.inference.predictor import Prediction, Predictor
    from castvision.visualization.clusters import ClusterMap

_TOP = 5
_SHEET_LAYERS = 6
_SHEET_ROWS = 16
UNTRAINED = "untrained weights: clusters only, no prediction"


@dataclass(frozen=True)
class Settings:
    """How the demo shows images.

    Attributes:
        max_size: Longer side of the model's input; None = the model's default.
        stretch: Stretch each image's range before the model sees it.
        opacity: Of the overlays.
        seed: Noted in the summary.
    """

    max_size: int | None = None
    stretch: bool = False
    opacity: float = 0.5
    seed: int = 0

    def check(self, predictor: Predictor) -> None:
        """Refuse what cannot be shown before any work.

        Raises:
            ValueError: ``max_size`` is too small, or an untrained model without clusters (nothing to show).
        """
        predictor.input_size((1, 1), self.max_size)
        if not predictor.is_trained and not predictor.parts.has_clusters:
            raise ValueError(
                f"{predictor.parts.name} is untrained and has no clusters, so there is nothing to show; "
                "name a cast_vit_* model or a checkpoint"
            )


@dataclass(frozen=True)
class Shown:
    """One image's results.

    Attributes:
        record: Its entry in summary.json.
        panels: Its row of the contact sheet.
    """

    record: dict[str, Any]
    panels: list[Panel]


def resolve_device(name: str) -> torch.device:
    """Turn ``auto`` into CUDA where there is one.

    Raises:
        ValueError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"expected a device of this machine (cpu, cuda, ...), got {name!r}: {_first_line(error)}"
        ) from None
    return device


def show_images(images: dict[Path, str], predictor: Predictor, output: OutputFolder, settings: Settings) -> int:
    """Write the pictures of all images; the ones that cannot be read are named at the end.

    Args:
        images: Each image and the name its pictures go under.
        predictor: The model.
        output: Where to write.
        settings: How.

    Returns:
        0 if all were shown, else 1.
    """
    console = Console()
    if not predictor.is_trained:
        console.print(f"[yellow]{escape(predictor.parts.name)}: {UNTRAINED}[/]")
    shown, skipped = [], []
    with _progress(console) as progress:
        task = progress.add_task("images", total=len(images))
        for path, name in images.items():
            progress.update(task, description=escape(figures.shorten(path.name, 30)))
            try:
                shown.append(show_image(path, name, predictor, output, settings))
            except (ValueError, FileNotFoundError, PermissionError) as error:
                skipped.append({"image": str(path), "error": _first_line(error)})
            progress.advance(task)
    _write_sheets([item.panels for item in shown], predictor, output)
    output.write("summary.json", _summary([item.record for item in shown], skipped, predictor, settings))
    console.print(f"{len(shown)} of {len(images)} images shown; pictures in {escape(str(output.path))}", soft_wrap=True)
    for entry in skipped:
        console.print(f"[red]skipped {escape(entry['image'])}[/]: {escape(entry['error'])}", soft_wrap=True)
    return 1 if skipped else 0


def show_image(path: Path, name: str, predictor: Predictor, output: OutputFolder, settings: Settings) -> Shown:
    """Write one image's pictures.

    Args:
        path: The image.
        name: Folder of its pictures, relative to the output.
        predictor: The model.
        output: Where to write.
        settings: How.

    Returns:
        Its record and its row of the contact sheet.

    Raises:
        ValueError: The image cannot be read or does not fit the model.
    """
    image = read_image(path)
    pixels: Pixels = stretch_range(image) if settings.stretch else image
    prepared = predictor.prepare(pixels, settings.max_size)
    start = time.perf_counter()
    prediction = predictor.predict(prepared) if predictor.is_trained else None
    maps = predictor.cluster_maps(prepared)
    seconds = time.perf_counter() - start
    heading = f"{figures.shorten(path.name, 48)} · {figures.shorten(predictor.parts.name, 48)}"
    writer = _ImageWriter(pictures.display_picture(image), (image.shape[0], image.shape[1]), name, heading, output)
    layers = writer.clusters(maps, settings.opacity, predictor.is_trained)
    record = {
        "image": str(path),
        "size": list(image.shape[:2]),
        "channels": image.shape[2],
        "dtype": str(image.dtype),
        "input_size": list(prepared.shape[-2:]),
        "seconds": round(seconds, 3),
        "prediction": None if prediction is None else writer.prediction(prediction, predictor.class_names),
        "layers": layers,
        "files": writer.files,
    }
    seen = " × ".join(str(side) for side in prepared.shape[-2:])
    size = f"{image.shape[0]} × {image.shape[1]}, seen at {seen}"
    caption = f"{figures.shorten(path.name, 30)}\n{writer.caption or size}"
    return Shown(record, [Panel(caption, writer.picture), *writer.prediction_panels, *writer.layer_panels])


@dataclass
class _ImageWriter:
    """Draws and writes the pictures of one image."""

    picture: pictures.RGB
    image_size: tuple[int, int]
    name: str
    heading: str
    output: OutputFolder
    files: list[str] = dataclasses.field(default_factory=list)
    caption: str = ""
    prediction_panels: list[Panel] = dataclasses.field(default_factory=list)
    layer_panels: list[Panel] = dataclasses.field(default_factory=list)

    def write(self, file_name: str, data: bytes) -> None:
        relative = f"{self.name}/{file_name}"
        self.output.write(relative, data)
        self.files.append(relative)

    def clusters(self, maps: list[ClusterMap], opacity: float, is_trained: bool) -> list[dict[str, Any]]:
        """Write one overlay per layer and the figure of all; return the layers' records."""
        if not maps:
            return []
        panels = []
        for cluster_map in maps:
            overlay = pictures.overlay_clusters(self.picture, cluster_map, opacity=opacity)
            layer = pictures.layer_name(cluster_map)
            self.write(f"layer_{layer}.png", _png(overlay))
            panels.append(Panel(f"{layer}\n{pictures.cluster_text(cluster_map)}", overlay))
        heading = self.heading if is_trained else f"{self.heading}\n{UNTRAINED}"
        figure = figures.grid_figure([Panel("image", self.picture), *panels], heading)
        self.write("clusters.png", figures.save_figure(figure))
        self.layer_panels = [panels[place] for place in _spread(len(panels), _SHEET_LAYERS)]
        return [_layer_record(cluster_map) for cluster_map in maps]

    def prediction(self, prediction: Prediction, names: Sequence[str]) -> dict[str, Any]:
        """Write the prediction's pictures; return its record."""
        if prediction.mask is None:
            return self._classification(prediction, names)
        return self._segmentation(prediction.mask.numpy(), names)

    def _classification(self, prediction: Prediction, names: Sequence[str]) -> dict[str, Any]:
        scores, places = prediction.probabilities.topk(min(_TOP, len(prediction.probabilities)))
        top = [(names[place], score) for place, score in zip(places.tolist(), scores.tolist(), strict=True)]
        figure = figures.classification_figure(self.picture, [n for n, _ in top], [s for _, s in top], self.heading)
        self.write("prediction.png", figures.save_figure(figure))
        self.caption = ", ".join(f"{figures.shorten(class_name, 18)} {score:.0%}" for class_name, score in top[:2])
        return {
            "task": "classification",
            "top": [{"class": name, "probability": round(score, 6)} for name, score in top],
        }

    def _segmentation(self, mask: pictures.Labels, names: Sequence[str]) -> dict[str, Any]:
        background = 0 if has_background(names) else None
        labels = pictures.resize_labels(mask, (self.picture.shape[0], self.picture.shape[1]))
        line = pictures.line_width(self.picture.shape[0] / mask.shape[0])
        overlay = pictures.overlay_labels(self.picture, labels, untinted=background, line=line)
        figure = figures.segmentation_figure(self.picture, overlay, mask, names, self.heading, untinted=background)
        self.write("prediction.png", figures.save_figure(figure))
        full = pictures.resize_labels(mask, self.image_size)
        self.write("mask.png", _png(full.astype(np.uint8 if len(names) <= 256 else np.uint16)))
        shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
        self.prediction_panels = [Panel("prediction", overlay)]
        return {
            "task": "segmentation",
            "shares": {name: round(float(share), 6) for name, share in zip(names, shares, strict=True) if share > 0},
        }


def has_background(names: Sequence[str]) -> bool:
    """Whether class 0 is "nothing here" (drawn untinted): the first of two classes, or named so."""
    return len(names) == 2 or names[0].casefold() in {"background", "other", "none", "unlabelled", "unlabeled", "void"}


def _layer_record(cluster_map: ClusterMap) -> dict[str, Any]:
    none, one, several = cluster_map.coverage
    return {
        "layer": pictures.layer_name(cluster_map),
        "grid_size": list(cluster_map.grid_size),
        "window_size": cluster_map.window_size,
        "num_clusters": cluster_map.num_clusters,
        "num_dead_clusters": cluster_map.num_dead_clusters,
        "largest_cluster": max(cluster_map.cluster_sizes.tolist(), default=0),
        "coverage": {"none": round(none, 6), "one": round(one, 6), "several": round(several, 6)},
    }


def _spread(length: int, count: int) -> list[int]:
    """At most ``count`` places of 0..length-1, first and last among them, evenly spread."""
    if length <= count:
        return list(range(length))
    return [round(step * (length - 1) / (count - 1)) for step in range(count)]


def _write_sheets(rows: list[list[Panel]], predictor: Predictor, output: OutputFolder) -> None:
    state = "" if predictor.is_trained else f" · {UNTRAINED}"
    pages = math.ceil(len(rows) / _SHEET_ROWS)
    for page in range(pages):
        part = rows[page * _SHEET_ROWS : (page + 1) * _SHEET_ROWS]
        count = "" if pages == 1 else f" · page {page + 1} of {pages}"
        figure = figures.contact_sheet(part, f"{figures.shorten(predictor.parts.name, 48)}{state}{count}")
        name = "contact_sheet.png" if pages == 1 else f"contact_sheet_{page + 1:0{len(str(pages))}d}.png"
        output.write(name, figures.save_figure(figure))


def _summary(
    shown: list[dict[str, Any]], skipped: list[dict[str, str]], predictor: Predictor, settings: Settings
) -> bytes:
    summary = {
        "castvision": castvision.__version__,
        "model": predictor.parts.name,
        "trained": predictor.is_trained,
        "note": None if predictor.is_trained else UNTRAINED,
        "task": predictor.parts.task,
        "classes": list(predictor.class_names),
        "device": str(predictor.device),
        **dataclasses.asdict(settings),
        "images": shown,
        "skipped": skipped,
    }
    return (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode()


def _progress(console: Console) -> Progress:
    text = TextColumn("{task.description}")
    return Progress(
        text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=console
    )


def _png(pixels: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
