"""Images through a trained model, one by one: masks, overlays, polygons and probabilities as files, then the tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

import castvision
from castvision.data import open_image
from castvision.errors import FAILURES
from castvision.inference.sinks import FileSink
from castvision.inference.tile_model import TileModel, model_range, open_for
from castvision.inference.tile_source import Skip
from castvision.inference.tiled import TiledResult, tiled_inference
from castvision.inference.writers.polygons import write_geojson
from castvision.inference.writers.preview import overlay_preview, read_reduced
from castvision.inference.writers.raster import write_png, write_tiff
from castvision.visualization.pictures import background_class

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from castvision.data import ImageReader
    from castvision.inference.files import OutputFolder
    from castvision.inference.predictor import Predictor

Record = dict[str, Any]
_PNG_PIXELS = 1 << 24
_CLASSIFIER_SIDE = 4096
_LARGEST_FACTOR = 2.0


@dataclass(frozen=True)
class Options:
    """How images are predicted.

    Attributes:
        tiles: Keywords of `tiled_inference`.
        mpp: Microns or ground units per pixel to work at; see `choose_level`.
        bands: Channels to read; None = those the model was trained on. See `open_for`.
        min_foreground: See `Skip`.
        blank: See `Skip`.
        overlay: Write the picture with the mask laid over it.
        geojson: Write polygons of all classes but a background.
        min_area: Smallest polygon, in pixels.
        simplify: Tolerance of outlines, in pixels.
        probabilities: Write the probabilities of all classes.
        top: Classes listed by a classification model.
        resume: Go on with an interrupted run in the same folder.
    """

    tiles: dict[str, Any]
    mpp: float | None = None
    bands: list[int] | None = None
    min_foreground: float = 0.0
    blank: float | None = None
    overlay: bool = True
    geojson: bool = False
    min_area: int = 1
    simplify: float = 0.0
    probabilities: bool = False
    top: int = 5
    resume: bool = False


class PredictionRun:
    """Predicts images one by one and keeps their records.

    Args:
        predictor: The model.
        output: Where to write.
        options: How.

    Raises:
        ValueError: An untrained model.
    """

    def __init__(self, predictor: Predictor, output: OutputFolder, options: Options) -> None:
        if not predictor.is_trained:
            raise ValueError(f"{predictor.parts.name} is untrained: its predictions mean nothing; give a checkpoint")
        self.predictor, self.output, self.options = predictor, output, options
        self.records: list[Record] = []

    def predict(
        self, path: Path, name: str, mask: Path | None = None, progress: bool | Callable[[int, int], None] = False
    ) -> Record:
        """Predict an image and write its results, unless an earlier run did; its record is written last.

        Args:
            path: The image.
            name: What its files are called, "/" between folders.
            mask: An image of where to work; None = everywhere.
            progress: See `tiled_inference`.

        Returns:
            Size, classes, speed and files, as summary.json has them.

        Raises:
            Exception: Any of `castvision.errors.FAILURES`; the files of this image are then incomplete.
        """
        file_name = f"records/{name}.json"
        stored = self.output.path / file_name
        if self.options.resume and stored.is_file():
            record: Record = json.loads(stored.read_text(encoding="utf-8"))
            if record["image"] == str(path):
                self.records.append(record)
                return record
        with open_for(self.predictor, path, self.options.bands) as reader:
            is_classifier = self.predictor.parts.task == "classification"
            level = 0 if is_classifier else choose_level(reader, self.options.mpp)
            size = reader.levels[level]
            mpp = None if reader.mpp is None else reader.mpp * size.downsample
            record = {"image": str(path), "size": [size.height, size.width], "level": level, "mpp": mpp}
            record |= self._classify(reader) if is_classifier else self._segment(reader, level, name, mask, progress)
        self.output.write(file_name, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        self.records.append(record)
        return record

    def _classify(self, reader: ImageReader) -> Record:
        prediction = self.predictor.predict(self.predictor.prepare(read_reduced(reader, _CLASSIFIER_SIDE)))
        scores, classes = prediction.probabilities.topk(min(self.options.top, len(prediction.probabilities)))
        top = [
            {"class": label, "name": self.predictor.class_names[label], "probability": round(score, 6)}
            for label, score in zip(classes.tolist(), scores.tolist(), strict=True)
        ]
        return {"classes": top, "files": []}

    def _segment(
        self,
        reader: ImageReader,
        level: int,
        name: str,
        mask_path: Path | None,
        progress: bool | Callable[[int, int], None],
    ) -> Record:
        model = TileModel(self.predictor, reader.channels, model_range(self.predictor, reader, level))
        output: Literal["labels", "probabilities"] = "probabilities" if self.options.probabilities else "labels"
        store = self.output.path / "masks" / f"{name}.{output}"
        store = store.with_name(f".{store.name}.part")
        store.parent.mkdir(parents=True, exist_ok=True)
        sink = FileSink(store, resume=self.options.resume)
        mask = None if mask_path is None else open_image(mask_path)
        skip = Skip(mask, self.options.min_foreground, self.options.blank)
        try:
            result = tiled_inference(
                reader, model, level=level, output=output, skip=skip, sink=sink, device=self.predictor.device,
                progress=progress, **self.options.tiles,
            )  # fmt: skip
            labels = sink.argmax() if self.options.probabilities else sink
            try:
                files = self._write(reader, level, name, labels, sink)
            finally:
                labels.discard()
        except FAILURES:
            sink.discard()  # a stopped process leaves it, a failure that would come again does not
            raise
        finally:
            if mask is not None:
                mask.close()
        sink.discard()
        return {**_facts(result, self.predictor.class_names), "files": files}

    def _write(self, reader: ImageReader, level: int, name: str, labels: FileSink, sink: FileSink) -> list[str]:
        names = self.predictor.class_names
        nodata = int(np.iinfo(labels.dtype).max)
        background = background_class(names)
        downsample = reader.levels[level].downsample
        ground = reader.georeference.of_window(0, 0, downsample) if reader.georeference else None
        scale: dict[str, Any] = {"georeference": ground, "mpp": reader.mpp and reader.mpp * downsample}
        is_small = math.prod(labels.shape) <= _PNG_PIXELS and ground is None
        files = [f"masks/{name}.{'png' if is_small else 'tif'}"]
        with self.output.draft(files[0]) as draft:
            write_png(draft, labels) if is_small else write_tiff(draft, labels, nodata=nodata, **scale)
        if self.options.probabilities:
            files.append(f"probabilities/{name}.tif")
            with self.output.draft(files[-1]) as draft:
                write_tiff(draft, sink, nodata=math.nan, **scale)
        if self.options.overlay:
            files.append(f"overlays/{name}.png")
            picture = overlay_preview(reader, labels, nodata=nodata, untinted=background)
            with self.output.draft(files[-1]) as draft:
                Image.fromarray(picture).save(draft, "PNG", compress_level=3)
        if self.options.geojson:
            files.append(f"polygons/{name}.geojson")
            left_out = [nodata] if background is None else [nodata, background]
            limits: dict[str, Any] = {"min_area": self.options.min_area, "simplify": self.options.simplify}
            with self.output.draft(files[-1]) as draft:
                write_geojson(draft, labels, names, left_out=left_out, georeference=ground, **limits)
        return files

    def write_tables(self, failed: list[dict[str, str]]) -> None:
        """Write predictions.csv and summary.json.

        Args:
            failed: Image and error of the images that could not be predicted.
        """
        text = io.StringIO()
        columns = ["image", "class", "name", "pixels", "share", "area", "probability"]
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for record in self.records:
            for entry in record["classes"]:
                area = None if record["mpp"] is None or "pixels" not in entry else entry["pixels"] * record["mpp"] ** 2
                writer.writerow({"image": record["image"], **entry, "area": None if area is None else f"{area:.6g}"})
        self.output.write("predictions.csv", text.getvalue().encode())
        summary = {
            "castvision": castvision.__version__,
            "model": self.predictor.parts.name,
            "task": self.predictor.parts.task,
            "classes": list(self.predictor.class_names),
            "device": str(self.predictor.device),
            "images": self.records,
            "failed": failed,
        }
        self.output.write("summary.json", (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())


def _facts(result: TiledResult, class_names: tuple[str, ...]) -> Record:
    total = max(sum(result.class_pixels), 1)
    counts = zip(class_names, result.class_pixels, result.class_probability, strict=False)
    classes = [
        {"class": label, "name": name, "pixels": pixels, "share": round(pixels / total, 6),
         "probability": None if math.isnan(probability) else round(probability, 6)}
        for label, (name, pixels, probability) in enumerate(counts)
    ]  # fmt: skip
    return {
        "classes": classes,
        "seam": None if result.seam is None else dataclasses.asdict(result.seam),
        "tiles_run": result.tiles_run,
        "tiles_skipped": result.tiles_skipped,
        "megapixels": result.megapixels,
        "seconds": round(result.seconds, 3),
        "megapixels_per_second": round(result.megapixels_per_second, 4),
    }


def choose_level(reader: ImageReader, mpp: float | None) -> int:
    """The pyramid's level nearest to a scale.

    Args:
        reader: The image.
        mpp: Microns or ground units per pixel; None = full size.

    Returns:
        Index into ``reader.levels``.

    Raises:
        ValueError: The image states no scale, or no level is within a factor of 2.
    """
    if mpp is None:
        return 0
    if reader.mpp is None:
        raise ValueError(f"{reader.name!r} does not state how large its pixels are; leave out --mpp for it")
    sizes = [reader.mpp * level.downsample for level in reader.levels]
    distances = [abs(math.log(size / mpp)) for size in sizes]
    best = min(range(len(sizes)), key=distances.__getitem__)
    if distances[best] > math.log(_LARGEST_FACTOR) + 1e-6:
        found = ", ".join(f"{size:g}" for size in sizes)
        raise ValueError(f"no level of {reader.name!r} is near --mpp {mpp:g}: it has {found}; resample the image")
    return best
