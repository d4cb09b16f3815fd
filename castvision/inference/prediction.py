"""Images through a trained model, one by one: masks, overlays, polygons and probabilities as files, then the tables."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import castvision
from castvision.data.reading import open_image
from castvision.errors import FAILURES
from castvision.files import part_of
from castvision.inference.files import OutputFolder, finished_record
from castvision.inference.instances.finding import InstanceOptions, find_instances
from castvision.inference.maps import Kind, Maps, maps_of, with_classes
from castvision.inference.scale import level_to_work_at
from castvision.inference.sinks import FileSink
from castvision.inference.suited import check_predicts
from castvision.inference.tile_model import open_for, tile_model_for, whole_in_a_tile
from castvision.inference.tile_source import Skip
from castvision.inference.tiled import TiledResult, bands_at_once, tiled_inference
from castvision.inference.tiling import make_grid
from castvision.inference.values import remark_on_values
from castvision.inference.whole_images import remark_on_size, whole_image
from castvision.inference.writers.instance_outputs import KINDS, check_size, write_instances
from castvision.inference.writers.polygons import write_geojson
from castvision.inference.writers.preview import overlay_preview, read_reduced
from castvision.inference.writers.raster import write_png, write_tiff
from castvision.visualization.pictures import background_class

if TYPE_CHECKING:
    from collections.abc import Callable

    from castvision.data import Georeference, ImageReader
    from castvision.inference.onnx_model import OnnxPredictor
    from castvision.inference.predictor import Predictor
    from castvision.inference.sinks import Sink
    from castvision.inference.tiling import TileGrid

Record = dict[str, Any]
_PNG_PIXELS = 1 << 24
CLASSIFIER_SIDE = 8192
"""Longer side of what a classifier is given of an image; larger ones are averaged over blocks first."""


@dataclass(frozen=True)
class Options:
    """How images are predicted.

    Attributes:
        tiles: Keywords of `tiled_inference`.
        fits: Show a model that was trained on whole images brought to one size whole images, and no tiles.
        mpp: Microns or ground units per pixel to work at; None = as in training, see `level_to_work_at`.
        bands: Channels to read; None = those the model was trained on. See `open_for`.
        min_foreground: See `Skip`.
        blank: See `Skip`.
        overlay: Write the picture with the mask laid over it.
        geojson: Write polygons of all classes but a background.
        min_area: Smallest polygon, in pixels.
        simplify: Tolerance of outlines, in pixels.
        probabilities: Write the probabilities of all classes.
        top: Classes listed by a classification model; of several labels for an image, all are.
        instances: Find single objects, and how; None = classes of pixels alone.
        instance_files: Which files are written of them, see `castvision.inference.writers.instance_outputs.KINDS`.
        resume: Go on with an interrupted run in the same folder.
    """

    tiles: dict[str, Any]
    fits: bool = False
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
    instances: InstanceOptions | None = None
    instance_files: tuple[str, ...] = KINDS
    resume: bool = False


def things_of(
    predictor: Predictor | OnnxPredictor, how: InstanceOptions, tiles: dict[str, Any], fits: bool
) -> list[int]:
    """The classes that have objects, if a model can give these.

    Args:
        predictor: The model.
        how: What is asked for.
        tiles: Keywords of `tiled_inference`.
        fits: See `Options`.

    Raises:
        ValueError: It says why not.
    """
    name = predictor.parts.name
    if predictor.parts.task != "segmentation":
        raise ValueError(f"{name} is a {predictor.parts.task} model: objects take a segmenter; leave out --instances")
    if how.how == "centres":
        if not predictor.gives_centres:
            raise ValueError(
                f"{name} gives no centres of objects; train it with --config instances, or find objects by "
                "--instances components or watershed"
            )
        if tiles.get("tta", "none") != "none" or fits:
            told = "--tta" if tiles.get("tta", "none") != "none" else "whole images brought to one size; give --tile"
            raise ValueError(f"expected --instances centres without {told}: offsets would have to be turned or scaled")
    return how.classes(predictor.class_names)


class PredictionRun:
    """Predicts images one by one and keeps their records.

    Args:
        predictor: The model.
        output: Where to write.
        options: How.

    Raises:
        ValueError: An untrained model, or one without classes, or that cannot give the objects asked for.
    """

    def __init__(self, predictor: Predictor | OnnxPredictor, output: OutputFolder, options: Options) -> None:
        check_predicts(predictor.parts.name, predictor.parts.task)
        self.predictor, self.output, self.options = predictor, output, options
        how = options.instances
        self.things = [] if how is None else things_of(predictor, how, options.tiles, options.fits)
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
        done = finished_record(self.output.path, name, path, mask) if self.options.resume else None
        if done is not None:
            self.records.append(done)
            return done
        with open_for(self.predictor, path, self.options.bands) as reader:
            is_classifier = self.predictor.parts.task != "segmentation"
            level, told = 0, None
            if not is_classifier:
                level, told = self._level(reader)
                told = told or remark_on_size(self.predictor, reader, level, self.options.fits)
            size = reader.levels[level]
            down, across = reader.pixels_across(level)
            mpp = None if reader.mpp is None else reader.mpp * size.downsample
            area = None if reader.pixel_area is None else reader.pixel_area * down * across
            record = {"image": str(path), "size": [size.height, size.width], "level": level, "mpp": mpp}
            record |= {"pixel_area": area, "area_unit": reader.area_unit, "scale": told}
            record["values"] = remark_on_values(reader, self.predictor.parts.input)
            record |= self._classify(reader) if is_classifier else self._segment(reader, level, name, mask, progress)
        self.output.write_text(file_name, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        self.records.append(record)
        return record

    def take(self, path: Path, name: str) -> Record:
        """The record of an image that another process predicted.

        Raises:
            FileNotFoundError: None did.
        """
        stored = self.output.path / "records" / f"{name}.json"
        if not stored.is_file():
            raise FileNotFoundError(
                f"expected {str(stored)!r} of {str(path)!r}, found none; do workers see this folder?"
            )
        record: Record = json.loads(stored.read_text(encoding="utf-8"))
        self.records.append(record)
        return record

    def _classify(self, reader: ImageReader) -> Record:
        prediction = self.predictor.predict(self.predictor.prepare_whole(read_reduced(reader, CLASSIFIER_SIDE)))
        count = len(prediction.probabilities)
        top = count if prediction.task == "multilabel" else min(self.options.top, count)  # each label is an answer
        scores = np.asarray(prediction.probabilities)
        classes = np.argsort(-scores, kind="stable")[:top]
        listed = [
            {"class": label, "name": self.predictor.class_names[label], "probability": round(score, 6)}
            for label, score in zip(classes.tolist(), scores[classes].tolist(), strict=True)
        ]
        return {"classes": listed, "files": []}

    def _segment(
        self,
        reader: ImageReader,
        level: int,
        name: str,
        mask_path: Path | None,
        progress: bool | Callable[[int, int], None],
    ) -> Record:
        store = self.store(name)
        store.parent.mkdir(parents=True, exist_ok=True)
        if self.options.instances is not None:
            size = reader.levels[level]
            check_size((size.height, size.width), self.options.instance_files)
        sink = FileSink(store, resume=self.options.resume)
        names = self.predictor.class_names
        try:
            result = self._tiled(reader, level, mask_path, sink, progress)
            maps = maps_of(sink, self._kind, len(names))
            try:
                if self._kind == "image":
                    result = with_classes(result, maps, len(names))
                written = self._write(reader, level, name, maps)
            finally:
                maps.discard()
        except FAILURES:
            sink.discard()  # a stopped process leaves it, a failure that would come again does not
            raise
        sink.discard()
        return {**_facts(result, names), **written}

    @property
    def _kind(self) -> Kind:
        if self.options.instances is not None and self.options.instances.how == "centres":
            return "image"
        return "probabilities" if self.options.probabilities else "labels"

    def store(self, name: str) -> Path:
        """Where an image's classes, or probabilities, stay until its files are written."""
        return part_of(self.output.path / "masks" / f"{name}.{self._kind}")

    def _level(self, reader: ImageReader) -> tuple[int, str | None]:
        return level_to_work_at(reader, self.options.mpp, self.predictor.parts.input)

    def _tiles(self, reader: ImageReader, level: int) -> dict[str, Any]:
        if self.options.fits:
            return {**self.options.tiles, **whole_image(reader, level)}
        size = (reader.levels[level].height, reader.levels[level].width)
        return whole_in_a_tile(self.predictor, self.options.tiles, size)

    def _tiled(
        self,
        reader: ImageReader,
        level: int,
        mask_path: Path | None,
        sink: Sink,
        progress: bool | Callable[[int, int], None],
    ) -> TiledResult:
        mask = None if mask_path is None else open_image(mask_path)
        skip = Skip(mask, self.options.min_foreground, self.options.blank)
        try:
            return tiled_inference(
                reader, self._model(reader, level), level=level, output=self._kind, skip=skip, sink=sink,
                device=self.predictor.device, progress=progress, **self._tiles(reader, level),
            )  # fmt: skip
        finally:
            if mask is not None:
                mask.close()

    def bands(self, path: Path) -> tuple[TileGrid, int] | None:
        """Where the tiles of an image lie and how many bands are worked on together; None where there are no tiles.

        Raises:
            Exception: Any of `castvision.errors.FAILURES`.
        """
        if self.predictor.parts.task != "segmentation" or self.options.fits:
            return None
        with open_for(self.predictor, path, self.options.bands) as reader:
            level, _ = self._level(reader)
            tiles = self._tiles(reader, level)
            halo = tiles["overlap"] // 4 if tiles["halo"] is None else tiles["halo"]
            size = (reader.levels[level].height, reader.levels[level].width)
            grid = make_grid(size, tiles["tile"], tiles["overlap"], halo)
            return grid, bands_at_once(grid, tiles["batch_size"])

    def predict_bands(self, path: Path, mask: Path | None, sink: Sink) -> TiledResult:
        """Predict the part of an image that a sink asks for, and write no file.

        Raises:
            Exception: Any of `castvision.errors.FAILURES`.
        """
        with open_for(self.predictor, path, self.options.bands) as reader:
            return self._tiled(reader, self._level(reader)[0], mask, sink, False)

    def _model(self, reader: ImageReader, level: int) -> Callable[..., Any]:
        if self.options.fits:
            return self.predictor.fitted(reader.dtype, reader.name)
        return tile_model_for(self.predictor, reader, level, centres=self._kind == "image")

    def _write(self, reader: ImageReader, level: int, name: str, maps: Maps) -> Record:
        names, labels = self.predictor.class_names, maps.labels
        nodata = int(np.iinfo(labels.dtype).max)
        background = background_class(names)
        down, across = reader.pixels_across(level)
        ground = reader.georeference.of_window(0, 0, (down, across)) if reader.georeference else None
        mpp = None if reader.mpp is None else (reader.mpp * across, (reader.mpp_y or reader.mpp) * down)
        scale: dict[str, Any] = {"georeference": ground, "mpp": mpp}
        is_small = math.prod(labels.shape) <= _PNG_PIXELS and ground is None
        files = [f"masks/{name}.{'png' if is_small else 'tif'}"]
        with self.output.draft(files[0]) as draft:
            write_png(draft, labels) if is_small else write_tiff(draft, labels, nodata=nodata, **scale)
        if self.options.probabilities and maps.probabilities is not None:
            files.append(f"probabilities/{name}.tif")
            with self.output.draft(files[-1]) as draft:
                write_tiff(draft, maps.probabilities, nodata=math.nan, **scale)
        if self.options.overlay:
            files.append(f"overlays/{name}.png")
            picture = overlay_preview(reader, labels, nodata=nodata, names=names)
            with self.output.draft(files[-1]) as draft:
                Image.fromarray(picture).save(draft, "PNG", compress_level=3)
        if self.options.geojson:
            files.append(f"polygons/{name}.geojson")
            left_out = [nodata] if background is None else [nodata, background]
            limits: dict[str, Any] = {"min_area": self.options.min_area, "simplify": self.options.simplify}
            where: dict[str, Any] = {"georeference": ground, "pixel_size": (across, down)}
            with self.output.draft(files[-1]) as draft:
                write_geojson(draft, labels, names, left_out=left_out, **where, **limits)
            if ground is not None and ground.has_crs and ground.epsg is None:
                files.append(f"polygons/{name}.wkt")
                self.output.write(files[-1], _wkt(ground, reader.name).encode())
        objects: Record = {}
        if self.options.instances is not None:
            objects, more = self._write_instances(reader, name, maps, scale, self.options.instances)
            files += more
        return {**objects, "files": files}

    def _write_instances(
        self, reader: ImageReader, name: str, maps: Maps, scale: dict[str, Any], how: InstanceOptions
    ) -> tuple[Record, list[str]]:
        """Find the objects and write their files; what is said of them, and the files."""
        options, names = self.options, self.predictor.class_names
        probabilities, fields = maps.probabilities, maps.fields
        found = find_instances(maps.labels, how, self.things, probabilities=probabilities, fields=fields)
        across, down = reader.width / maps.labels.shape[1], reader.height / maps.labels.shape[0]
        try:
            files = write_instances(
                self.output, name, found, names, image=Path(reader.name).name, things=self.things,
                kinds=options.instance_files, pixel_size=(across, down), simplify=options.simplify, **scale,
            )  # fmt: skip
        finally:
            found.ids.discard()
        ground = scale["georeference"]
        if "geojson" in options.instance_files and ground is not None and ground.has_crs and ground.epsg is None:
            files.append(f"instances/{name}.wkt")
            self.output.write(files[-1], _wkt(ground, reader.name).encode())
        counts = np.bincount(found.classes[1:], minlength=len(names)).tolist()
        counted = {names[label]: counts[label] for label in self.things}
        facts = {"how": how.how, "count": len(found), "classes": counted, "pixels_in_none": found.lost}
        return {"instances": facts}, files

    def write_tables(self, failed: list[dict[str, str]]) -> None:
        """Write predictions.csv, without columns that would be empty, and summary.json.

        Args:
            failed: Image and error of the images that could not be predicted.
        """
        rows: list[dict[str, Any]] = []
        for record in self.records:
            for entry in record["classes"]:
                row = {"image": record["image"], **entry}
                if record.get("pixel_area") is not None and "pixels" in entry:
                    row |= {"area": f"{entry['pixels'] * record['pixel_area']:.6g}", "area_unit": record["area_unit"]}
                rows.append(row)
        filled = {key for row in rows for key, value in row.items() if value is not None}
        columns = ["image", "class", "name", "pixels", "share", "area", "area_unit", "probability"]
        text = io.StringIO()
        shown = [name for name in columns if name in filled]
        writer = csv.DictWriter(text, shown, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        self.output.write_text("predictions.csv", text.getvalue())
        summary = {
            "castvision": castvision.__version__,
            "model": self.predictor.parts.name,
            "task": self.predictor.parts.task,
            "classes": list(self.predictor.class_names),
            "device": str(self.predictor.device),
            "images": self.records,
            "failed": failed,
        }
        self.output.write_text("summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


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


def _wkt(ground: Georeference, name: str) -> str:
    """The coordinate system of polygons whose file cannot name it.

    Raises:
        ImportError: Only rasterio, which is not installed, can tell it.
    """
    wkt = ground.to_wkt()
    if wkt is None:
        raise ImportError(
            f"the coordinate system of {name!r} has no code, and writing it as WKT beside the polygons needs rasterio: "
            "pip install 'castvision[large-images]', or leave out --geojson"
        )
    return wkt
