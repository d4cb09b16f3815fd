"""Images through a model, masks and tables to a folder: the work of ``castvision predict``."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape

from castvision.data import open_image
from castvision.inference.prediction_options import FAILURES, Options, choose_level
from castvision.inference.prediction_report import Record, describe, make_progress, write_tables
from castvision.inference.showing import has_background
from castvision.inference.sinks import FileSink
from castvision.inference.tile_model import TileModel, model_range
from castvision.inference.tile_source import Skip
from castvision.inference.tiled import TiledResult, tiled_inference
from castvision.inference.writers.polygons import write_geojson
from castvision.inference.writers.preview import overlay_preview, read_reduced
from castvision.inference.writers.raster import write_png, write_tiff
from castvision.visualization.figures import shorten

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rich.progress import Progress, TaskID

    from castvision.data import ImageReader
    from castvision.inference.files import OutputFolder
    from castvision.inference.predictor import Predictor

_PNG_PIXELS = 1 << 24
_CLASSIFIER_SIDE = 4096


def predict_images(
    images: dict[Path, str], masks: dict[Path, Path], predictor: Predictor, output: OutputFolder, options: Options
) -> int:
    """Predict all images; the ones that fail are named at the end.

    Args:
        images: Each image and the name its results go under.
        masks: Where to work, for images that have a mask.
        predictor: The model.
        output: Where to write.
        options: How.

    Returns:
        0 if all were done, else 1.
    """
    console = Console()
    records: list[Record] = []
    failed: list[dict[str, str]] = []
    with make_progress(console) as progress:
        whole = progress.add_task("images", total=len(images))
        for path, name in images.items():
            task = progress.add_task(escape(shorten(path.name, 30)), total=None)
            try:
                job = _Job(path, name, masks.get(path), predictor, output, options)
                records.append(job.run(partial(_show_tiles, progress, task)))
                console.print(escape(describe(records[-1])), soft_wrap=True, highlight=False)
            except FAILURES as error:
                failed.append({"image": str(path), "error": " ".join(str(error).split()) or type(error).__name__})
            progress.remove_task(task)
            progress.advance(whole)
    write_tables(records, failed, predictor, output)
    console.print(f"{len(records)} of {len(images)} images done; results in {escape(str(output.path))}", soft_wrap=True)
    for entry in failed:
        named = entry["error"] if entry["image"] in entry["error"] else f"{entry['image']}: {entry['error']}"
        console.print(f"[red]failed[/] {escape(named)}", soft_wrap=True)
    return 1 if failed else 0


def _show_tiles(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


@dataclass
class _Job:
    """One image."""

    path: Path
    name: str
    mask: Path | None
    predictor: Predictor
    output: OutputFolder
    options: Options

    def run(self, report: Callable[[int, int], None]) -> Record:
        """Predict the image and write its results, unless an earlier run did; its record is written last."""
        file_name = f"records/{self.name}.json"
        stored = self.output.path / file_name
        if self.options.resume and stored.is_file():
            record: Record = json.loads(stored.read_text(encoding="utf-8"))
            if record["image"] == str(self.path):
                return record
        with open_image(self.path) as reader:
            if self.predictor.parts.task == "classification":
                record = self._classify(reader)
            else:
                record = self._segment(reader, report)
        self.output.write(file_name, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        return record

    def _describe(self, reader: ImageReader, level: int) -> Record:
        size = reader.levels[level]
        mpp = None if reader.mpp is None else reader.mpp * size.downsample
        return {"image": str(self.path), "size": [size.height, size.width], "level": level, "mpp": mpp}

    def _classify(self, reader: ImageReader) -> Record:
        prediction = self.predictor.predict(self.predictor.prepare(read_reduced(reader, _CLASSIFIER_SIDE)))
        scores, places = prediction.probabilities.topk(min(self.options.top, len(prediction.probabilities)))
        names = self.predictor.class_names
        top = [
            {"class": place, "name": names[place], "probability": round(score, 6)}
            for place, score in zip(places.tolist(), scores.tolist(), strict=True)
        ]
        return {**self._describe(reader, 0), "classes": top, "files": []}

    def _segment(self, reader: ImageReader, report: Callable[[int, int], None]) -> Record:
        level = choose_level(reader, self.options.mpp)
        model = TileModel(self.predictor, reader.channels, model_range(self.predictor, reader, level))
        output: Literal["labels", "probabilities"] = "probabilities" if self.options.probabilities else "labels"
        store = self.output.path / "masks" / f"{self.name}.{output}"
        store = store.with_name(f".{store.name}.part")
        store.parent.mkdir(parents=True, exist_ok=True)
        sink = FileSink(store, resume=self.options.resume)
        mask = None if self.mask is None else open_image(self.mask)
        skip = Skip(mask, self.options.min_foreground, self.options.blank)
        try:
            result = tiled_inference(
                reader, model, level=level, output=output, skip=skip, sink=sink, device=self.predictor.device,
                progress=report, **self.options.tiles,
            )  # fmt: skip
            labels = sink.argmax() if self.options.probabilities else sink
            try:
                files = self._write(reader, level, labels, sink)
            finally:
                labels.discard()
        except FAILURES:
            sink.discard()  # a stopped process leaves it, a failure that would come again does not
            raise
        finally:
            if mask is not None:
                mask.close()
        sink.discard()
        return {**self._describe(reader, level), **self._figures(result), "files": files}

    def _write(self, reader: ImageReader, level: int, labels: FileSink, sink: FileSink) -> list[str]:
        names = self.predictor.class_names
        nodata = int(np.iinfo(labels.dtype).max)
        untinted = 0 if has_background(names) else None
        downsample = reader.levels[level].downsample
        place = reader.georeference.of_window(0, 0, downsample) if reader.georeference else None
        scale: dict[str, Any] = {"georeference": place, "mpp": reader.mpp and reader.mpp * downsample}
        is_small = math.prod(labels.shape) <= _PNG_PIXELS and place is None
        files = [f"masks/{self.name}.{'png' if is_small else 'tif'}"]
        with self.output.draft(files[0]) as draft:
            write_png(draft, labels) if is_small else write_tiff(draft, labels, nodata=nodata, **scale)
        if self.options.probabilities:
            files.append(f"probabilities/{self.name}.tif")
            with self.output.draft(files[-1]) as draft:
                write_tiff(draft, sink, nodata=math.nan, **scale)
        if self.options.overlay:
            files.append(f"overlays/{self.name}.png")
            picture = overlay_preview(reader, labels, nodata=nodata, untinted=untinted)
            with self.output.draft(files[-1]) as draft:
                Image.fromarray(picture).save(draft, "PNG", compress_level=3)
        if self.options.geojson:
            files.append(f"polygons/{self.name}.geojson")
            left_out = [nodata] if untinted is None else [nodata, untinted]
            limits: dict[str, Any] = {"min_area": self.options.min_area, "simplify": self.options.simplify}
            with self.output.draft(files[-1]) as draft:
                write_geojson(draft, labels, names, left_out=left_out, georeference=place, **limits)
        return files

    def _figures(self, result: TiledResult) -> Record:
        total = max(sum(result.class_pixels), 1)
        classes = [
            {"class": number, "name": name, "pixels": pixels, "share": round(pixels / total, 6),
             "probability": None if math.isnan(probability) else round(probability, 6)}
            for number, (name, pixels, probability) in enumerate(
                zip(self.predictor.class_names, result.class_pixels, result.class_probability, strict=False)
            )
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
