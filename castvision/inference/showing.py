"""What a model makes of photographs, as pictures: its windows and clusters layer by layer, and its predictions."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import castvision
from castvision.data.datasets.samples import whole_pixels
from castvision.data.reading.pixels import Mask, Pixels, holds_data, is_empty, mark_missing, stretch_range
from castvision.inference.sinks import label_dtype
from castvision.inference.tile_model import open_for
from castvision.inference.values import remark_on_values
from castvision.visualization import pictures, plots
from castvision.visualization.legend import class_entries, shorten
from castvision.visualization.plots import Panel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from castvision.inference.files import OutputFolder
    from castvision.inference.predictor import Prediction, Predictor
    from castvision.visualization.clusters import ClusterMap

_TOP = 5
_SHEET_LAYERS = 6
_SHEET_ROWS = 16
UNTRAINED = "untrained weights: clusters only, no prediction"


@dataclass(frozen=True)
class Options:
    """How images are shown.

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


class Showing:
    """Shows images one by one and keeps what the contact sheet and the summary need.

    Args:
        predictor: The model.
        output: Where to write.
        options: How.

    Raises:
        ValueError: ``max_size`` is too small, or an untrained model without clusters (nothing to show).
    """

    def __init__(self, predictor: Predictor, output: OutputFolder, options: Options) -> None:
        predictor.input_size((1, 1), options.max_size)
        if not predictor.has_classes and not predictor.parts.has_clusters:
            raise ValueError(
                f"{predictor.parts.name} {'has no classes' if predictor.is_trained else 'is untrained'} and has no "
                "clusters, so there is nothing to show; name a cast_vit_* model or a checkpoint, or give a ViT of "
                "timm's attention near_far"
            )
        self.predictor, self.output, self.options = predictor, output, options
        self.records: list[dict[str, Any]] = []
        self.rows: list[list[Panel]] = []
        self.classes: set[int] = set()  # in the masks of the sheet

    def show(self, path: Path, name: str) -> str | None:
        """Write one image's pictures.

        Args:
            path: The image.
            name: Folder of its pictures, relative to the output.

        Returns:
            What a person is to be told of its values; None where there is nothing to say.

        Raises:
            ValueError: The image cannot be read or does not fit the model.
        """
        predictor, options = self.predictor, self.options
        with open_for(predictor, path) as reader:
            image = whole_pixels(reader)
            remark = None if options.stretch else remark_on_values(reader, predictor.parts.input)
        pixels: Pixels = mark_missing(stretch_range(image), holds_data(image)) if options.stretch else image
        prepared = predictor.prepare(pixels, options.max_size)
        start = time.perf_counter()
        is_hole = is_empty(image)
        prediction = self._predict(pixels, prepared, is_hole) if predictor.has_classes else None
        maps = predictor.cluster_maps(prepared, is_hole)
        seconds = time.perf_counter() - start
        picture = pictures.display_picture(image)
        heading = f"{shorten(path.name, 48)} · {shorten(predictor.parts.name, 48)}"
        files: dict[str, bytes] = {}
        layers, layer_panels = self._draw_clusters(picture, maps, heading, files)
        said, caption, prediction_panels = None, "", list[Panel]()
        if prediction is not None and prediction.mask is None:
            said, caption = self._draw_classes(picture, prediction, heading, files)
        elif prediction is not None:
            said, prediction_panels = self._draw_mask(picture, prediction, is_hole, heading, files)
        for file_name, content in files.items():
            self.output.write(f"{name}/{file_name}", content)
        self.records.append(
            {
                "image": str(path),
                "size": list(image.shape[:2]),
                "channels": image.shape[2],
                "dtype": str(image.dtype),
                "input_size": list(prepared.shape[-2:]),
                "seconds": round(seconds, 3),
                "prediction": said,
                "layers": layers,
                "files": [f"{name}/{file_name}" for file_name in files],
            }
        )
        seen = " × ".join(str(side) for side in prepared.shape[-2:])
        caption = caption or f"{image.shape[0]} × {image.shape[1]}, seen at {seen}"
        first = Panel(f"{shorten(path.name, 30)}\n{caption}", picture)
        self.rows.append([first, *prediction_panels, *layer_panels])
        return remark and f"{path}: {remark} (--stretch shows each image its own range)"

    def _predict(self, pixels: Pixels, prepared: Tensor, is_hole: Mask) -> Prediction:
        """Of a whole image as `castvision predict` has it, unless a size is asked for: the maps show all of it."""
        predictor = self.predictor
        if predictor.parts.task != "segmentation" and self.options.max_size is None:
            return predictor.predict(predictor.prepare_whole(pixels))
        return predictor.predict(prepared, is_hole)

    def _draw_clusters(
        self, picture: pictures.RGB, maps: list[ClusterMap], heading: str, files: dict[str, bytes]
    ) -> tuple[list[dict[str, Any]], list[Panel]]:
        """One overlay for each layer and the plot of all; returns the layers' records and some of their panels."""
        if not maps:
            return [], []
        panels = []
        for cluster_map in maps:
            overlay = pictures.overlay_clusters(picture, cluster_map, opacity=self.options.opacity)
            layer = pictures.layer_name(cluster_map)
            files[f"layer_{layer}.png"] = pictures.as_png(overlay)
            panels.append(Panel(f"{layer}\n{pictures.cluster_text(cluster_map)}", overlay))
        heading = heading if self.predictor.is_trained else f"{heading}\n{UNTRAINED}"
        files["clusters.png"] = plots.as_png(plots.plot_grid([Panel("image", picture), *panels], heading))
        spread = np.linspace(0, len(panels) - 1, min(len(panels), _SHEET_LAYERS)).round().astype(int)
        return [_layer_record(cluster_map) for cluster_map in maps], [panels[index] for index in spread]

    def _draw_classes(
        self, picture: pictures.RGB, prediction: Prediction, heading: str, files: dict[str, bytes]
    ) -> tuple[dict[str, Any], str]:
        """The most probable classes; returns their record and a caption."""
        scores, classes = prediction.probabilities.topk(min(_TOP, len(prediction.probabilities)))
        names, values = [self.predictor.class_names[label] for label in classes.tolist()], scores.tolist()
        files["prediction.png"] = plots.as_png(plots.plot_classification(picture, names, values, heading))
        top = list(zip(names, values, strict=True))
        caption = ", ".join(f"{shorten(class_name, 18)} {score:.2f}" for class_name, score in top[:2])
        record = [{"class": class_name, "probability": round(score, 6)} for class_name, score in top]
        return {"task": "classification", "top": record}, caption

    def _draw_mask(
        self,
        picture: pictures.RGB,
        prediction: Prediction,
        is_hole: Mask,
        heading: str,
        files: dict[str, bytes],
    ) -> tuple[dict[str, Any], list[Panel]]:
        """The mask, laid over the picture and at the image's size; returns its record and a panel.

        Where the image is empty there is no class, as in what `castvision predict` writes.
        """
        mask: pictures.Labels = prediction.mask.numpy()  # type: ignore[union-attr]  # the caller has looked
        mask = np.where(pictures.resize_labels(is_hole.astype(np.int64), mask.shape[:2]) > 0, -1, mask)
        names = self.predictor.class_names
        background = pictures.background_class(names)
        overlay = pictures.overlay_mask(picture, mask, untinted=background)
        plot = plots.plot_segmentation(picture, overlay, mask, names, heading, untinted=background)
        files["prediction.png"] = plots.as_png(plot)
        full, kind = pictures.resize_labels(mask, is_hole.shape[:2]), label_dtype(len(names))
        files["mask.png"] = pictures.as_png(np.where(is_hole | (full < 0), np.iinfo(kind).max, full).astype(kind))
        shares = np.bincount(mask[mask >= 0], minlength=len(names)) / max(1, int((mask >= 0).sum()))
        self.classes |= set(np.unique(mask).tolist())
        present = {name: round(float(share), 6) for name, share in zip(names, shares, strict=True) if share > 0}
        return {"task": "segmentation", "shares": present}, [Panel("prediction", overlay)]

    def finish(self, skipped: list[dict[str, str]]) -> None:
        """Write the contact sheets and summary.json.

        Args:
            skipped: Image and error of the images that could not be shown.
        """
        predictor = self.predictor
        state = "" if predictor.is_trained else f" · {UNTRAINED}"
        names = predictor.class_names
        background = pictures.background_class(names) if self.classes else None
        legend = class_entries(sorted(self.classes), names, background, "no data")
        pages = math.ceil(len(self.rows) / _SHEET_ROWS)
        for page in range(pages):
            part = self.rows[page * _SHEET_ROWS : (page + 1) * _SHEET_ROWS]
            count = "" if pages == 1 else f" · page {page + 1} of {pages}"
            sheet = plots.plot_rows(part, f"{shorten(predictor.parts.name, 48)}{state}{count}", legend)
            name = "contact_sheet.png" if pages == 1 else f"contact_sheet_{page + 1:0{len(str(pages))}d}.png"
            self.output.write(name, plots.as_png(sheet))
        summary = {
            "castvision": castvision.__version__,
            "model": predictor.parts.name,
            "trained": predictor.is_trained,
            "note": None if predictor.is_trained else UNTRAINED,
            "task": predictor.parts.task,
            "classes": list(predictor.class_names),
            "device": str(predictor.device),
            **dataclasses.asdict(self.options),
            "images": self.records,
            "skipped": skipped,
        }
        self.output.write_text("summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")


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
