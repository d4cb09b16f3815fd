"""Images through a backbone, one by one: dense features, embeddings, tiles of slides and pictures as files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

import castvision
from castvision.data import open_image
from castvision.data.reading.bags import h5py_module
from castvision.files import part_of
from castvision.inference.files import OutputFolder, finished_record
from castvision.inference.scale import level_to_work_at
from castvision.inference.slide_tiles import TileOptions, cut, embed_tiles
from castvision.inference.suited import check_place
from castvision.inference.tile_model import model_range, open_for
from castvision.inference.tile_source import Skip
from castvision.inference.tissue import find_tissue
from castvision.inference.token_tiles import (
    FeatureSink,
    TokenPredictor,
    check_channels,
    check_overlap,
    check_tile,
    embed_tokens,
)
from castvision.inference.values import remark_on_values
from castvision.inference.writers.features import SUFFIXES, check_format, write_features
from castvision.visualization.features import enlarged, heat_map, principal_colours, similarity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from castvision.data import ImageReader
    from castvision.inference.feature_model import FeatureModel
    from castvision.inference.tissue import Mask

Record = dict[str, Any]
WRITES = ("dense", "image", "tiles")
"""What may be written: a vector for each patch, one for each image, one for each tile of a slide."""
_PICTURE_VALUES = 1 << 26


@dataclass(frozen=True)
class Options:
    """How images are embedded.

    Attributes:
        write: Some of `WRITES`.
        kind: Format of dense features, see `castvision.inference.writers.features`.
        dtype: Of dense features, "float16" or "float32".
        tile: Side in pixels; None = whole images, and for "tiles" the size the model was trained at.
        overlap: Pixels shared by neighbouring tiles; None = an eighth for dense features, none for "tiles".
        mpp: Microns or ground units a pixel to work at; None = that of a checkpoint's training, if it and the image
            state one, else the image's own. Dense features are of the nearest level; tiles are brought to it.
        bands: Channels to read; None = those the model was trained on.
        tissue: Leave out what is no tissue, see `find_tissue`; in place of a mask.
        min_foreground: See `TileOptions`; of "tiles" alone.
        pool: See `TileOptions`; None = the class token, or the mean of a model without one.
        batch_size: Tiles at once.
        precision: "fp32" or "bf16".
        pca: Draw principal components.
        similar_to: (y, x) in pixels of the full image: draw how similar all is to the token there.
        resume: Skip images that an earlier run in the same folder finished.
    """

    write: tuple[str, ...] = ("dense", "image")
    kind: str = "npy"
    dtype: str = "float16"
    tile: int | None = None
    overlap: int | None = None
    mpp: float | None = None
    bands: list[int] | None = None
    tissue: bool = False
    min_foreground: float = 0.25
    pool: str | None = None
    batch_size: int = 4
    precision: str = "fp32"
    pca: bool = False
    similar_to: tuple[int, int] | None = None
    resume: bool = False

    @property
    def needs_tokens(self) -> bool:
        """Whether the grid of tokens is wanted, or only tiles of slides."""
        return self.pca or self.similar_to is not None or bool({"dense", "image"} & set(self.write))


class EmbeddingRun:
    """Embeds images one by one and keeps their records.

    Args:
        model: The backbone.
        output: Where to write.
        options: How.

    Raises:
        ValueError: A tile the model does not take.
        ImportError: A format whose library is not installed.
    """

    def __init__(self, model: FeatureModel, output: OutputFolder, options: Options) -> None:
        if options.tile is not None:
            check_tile(model, options.tile)
            if options.needs_tokens:
                check_overlap(model, options.tile, options.overlap)
        if "dense" in options.write:
            check_format(options.kind)
        if "tiles" in options.write:
            h5py_module()
            if options.pool not in (None, "mean") and not model.has_class_token:
                raise ValueError(f"expected --pool mean for {model.name}, which has no class token, got {options.pool}")
        self.model, self.output, self.options = model, output, options
        if "tiles" in options.write:
            self._tile_options(None)
        self.records: list[Record] = []

    def check(self, reader: ImageReader) -> None:
        """Refuse an image by its header: other channels than the model's, no level near the scale, less than a tile.

        Raises:
            ValueError: It says which.
        """
        check_place(reader, self.options.similar_to)
        check_channels(self.model, reader.channels)
        if self.options.needs_tokens:
            level_to_work_at(reader, self.options.mpp, self.model.predictor.parts.input)
        if "tiles" in self.options.write:
            cut(reader, self._tiles_of(reader))

    def take(self, path: Path, name: str) -> Record:
        """The record of an image that another process embedded.

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

    def embed(
        self,
        path: Path,
        name: str,
        mask_path: Path | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Record:
        """Embed an image and write its results, unless an earlier run did; its record is written last.

        Args:
            path: The image.
            name: What its files are called, "/" between folders.
            mask_path: An image of where to work; None = everywhere.
            progress: Told (tiles done, tiles in all).

        Returns:
            Size, scale, tokens, tiles and files, as records/NAME.json has them.

        Raises:
            Exception: Any of `castvision.errors.FAILURES`; the image has no record then.
        """
        file_name = f"records/{name}.json"
        done = finished_record(self.output.path, name, path, mask_path) if self.options.resume else None
        if done is not None:
            self.records.append(done)
            return done
        mask = None if mask_path is None else open_image(mask_path)
        try:
            with open_for(self.model.predictor, path, self.options.bands) as reader:
                self.check(reader)
                tissue = find_tissue(reader) if self.options.tissue else None
                record: Record = {"image": str(path), "name": name, "size": [reader.height, reader.width], "files": []}
                record["values"] = remark_on_values(reader, self.model.predictor.parts.input)
                if self.options.needs_tokens:
                    record |= self._tokens(reader, name, mask if tissue is None else tissue, record["files"], progress)
                if "tiles" in self.options.write:
                    record |= self._tiles(reader, name, tissue, mask, record["files"], progress)
        finally:
            if mask is not None:
                mask.close()
        self.output.write_text(file_name, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        self.records.append(record)
        return record

    def _tokens(
        self,
        reader: ImageReader,
        name: str,
        mask: ImageReader | Mask | None,
        files: list[str],
        progress: Callable[[int, int], None],
    ) -> Record:
        options, seen = self.options, self.model.predictor.parts.input
        level, told = level_to_work_at(reader, options.mpp, seen)
        limits = model_range(self.model.predictor, reader, level)
        predictor = TokenPredictor(self.model, reader.channels, limits, options.precision)
        store = part_of(self.output.path / "features" / f"{name}.raw")
        store.parent.mkdir(parents=True, exist_ok=True)
        sink = FeatureSink(store, options.dtype)
        try:
            found = embed_tokens(
                predictor, reader, sink, level=level, tile=options.tile, overlap=options.overlap,
                batch_size=options.batch_size, skip=Skip(mask), progress=progress,
            )  # fmt: skip
            rows, cols, channels = sink.shape
            facts = {**found, "level": level, "scale": told, "tokens": [rows, cols], "channels": channels}
            facts |= self._place(reader, level)
            if "dense" in options.write:
                self._write_dense(reader, level, name, sink, facts, files)
            if "image" in options.write:
                self._write_image(name, predictor, sink, files)
            self._draw(reader, level, name, sink, files)
        finally:
            sink.discard()
            if not any(store.parent.iterdir()):
                store.parent.rmdir()
        return facts

    def _place(self, reader: ImageReader, level: int) -> Record:
        """Where the tokens lie: pixels of level 0 along one, microns, and on the ground."""
        down, across = self._downsample(reader, level)
        facts: Record = {"token_pixels": [down, across], "model": self.model.name}
        if reader.mpp is not None:
            facts["token_mpp"] = [(reader.mpp_y or reader.mpp) * down, reader.mpp * across]
        if reader.georeference is not None:
            ground = reader.georeference.of_window(0, 0, (down, across))
            facts["georeference"] = {"transform": list(ground.transform), "crs": ground.crs}
        return facts

    def _downsample(self, reader: ImageReader, level: int) -> tuple[float, float]:
        """Pixels of the full image along a token, down and across."""
        down, across = reader.pixels_across(level)
        return down * self.model.patch[0], across * self.model.patch[1]

    def _write_dense(
        self, reader: ImageReader, level: int, name: str, sink: FeatureSink, facts: Record, files: list[str]
    ) -> None:
        down, across = self._downsample(reader, level)
        ground = reader.georeference.of_window(0, 0, (down, across)) if reader.georeference else None
        mpp = None if reader.mpp is None else (reader.mpp * across, (reader.mpp_y or reader.mpp) * down)
        files.append(f"features/{name}{SUFFIXES[self.options.kind]}")
        with self.output.draft(files[-1]) as draft:
            write_features(draft, sink, self.options.kind, georeference=ground, mpp=mpp, facts=facts)

    def _write_image(self, name: str, predictor: TokenPredictor, sink: FeatureSink, files: list[str]) -> None:
        class_token = predictor.class_mean
        found = {"mean": sink.mean, **({} if class_token is None else {"class_token": class_token})}
        files.append(f"embeddings/{name}.npz")
        with self.output.draft(files[-1]) as draft, draft.open("wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]  # its stub takes a keyword for an option

    def _draw(self, reader: ImageReader, level: int, name: str, sink: FeatureSink, files: list[str]) -> None:
        if not (self.options.pca or self.options.similar_to):
            return
        patches, step = sink.thinned(_PICTURE_VALUES)
        cell = max(self.model.patch) * step
        if self.options.pca:
            picture = (principal_colours(patches) * 255).round().byte().numpy()
            self._write_picture(f"pca/{name}.png", enlarged(picture, cell), files)
        if self.options.similar_to is not None:
            down, across = self._downsample(reader, level)
            y, x = self.options.similar_to
            row, col = min(int(y / down), sink.shape[0] - 1), min(int(x / across), sink.shape[1] - 1)
            values = similarity(*_with_token(patches, sink, row, col, step)).numpy()
            self._write_picture(f"similar/{name}.png", enlarged(heat_map(values, high=1.0), cell), files)

    def _write_picture(self, file_name: str, picture: Any, files: list[str]) -> None:
        files.append(file_name)
        with self.output.draft(file_name) as draft:
            Image.fromarray(picture).save(draft, "PNG", compress_level=3)

    def _tiles(
        self,
        reader: ImageReader,
        name: str,
        tissue: Mask | None,
        mask: ImageReader | None,
        files: list[str],
        progress: Callable[[int, int], None],
    ) -> Record:
        files.append(f"tiles/{name}.h5")
        with self.output.draft(files[-1]) as draft:
            last = name.rpartition("/")[2]
            found = embed_tiles(
                self.model, reader, draft, last, self._tiles_of(reader), tissue=tissue, mask=mask, progress=progress
            )  # fmt: skip
        return {f"slide_{key}": value for key, value in found.items()}

    def _tiles_of(self, reader: ImageReader) -> TileOptions:
        return self._tile_options(self.options.mpp or self._scale_of_training(reader))

    def _tile_options(self, mpp: float | None) -> TileOptions:
        options = self.options
        return TileOptions(
            tile=options.tile or min(self.model.predictor.parts.input.img_size),
            overlap=options.overlap or 0,
            mpp=mpp,
            pool=options.pool or ("class" if self.model.has_class_token else "mean"),
            min_foreground=options.min_foreground,
            batch_size=options.batch_size,
            precision=options.precision,
        )

    def _scale_of_training(self, reader: ImageReader) -> float | None:
        """Of a checkpoint that remembers one, for images that state theirs in the same unit."""
        seen = self.model.predictor.parts.input
        return seen.mpp if reader.mpp is not None and reader.mpp_unit == seen.mpp_unit else None

    def write_tables(self, failed: list[dict[str, str]]) -> None:
        """Write summary.json, and embeddings.npz with the embeddings of all images.

        Args:
            failed: Image and error of the images that could not be embedded.
        """
        if "image" in self.options.write and self.records:
            loaded = []
            for record in self.records:
                with np.load(self.output.path / "embeddings" / f"{record['name']}.npz") as file:
                    loaded.append(dict(file))
            stacked = {key: np.stack([each[key] for each in loaded]) for key in loaded[0]}
            names = np.array([record["image"].encode("utf-8", "backslashreplace").decode() for record in self.records])
            with self.output.draft("embeddings.npz") as draft, draft.open("wb") as file_:
                np.savez(file_, images=names, **stacked)  # type: ignore[arg-type]
        summary = {
            "castvision": castvision.__version__,
            "model": self.model.name,
            "images": self.records,
            "failed": failed,
        }
        self.output.write_text("summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")


def _with_token(patches: Tensor, sink: FeatureSink, row: int, col: int, step: int) -> tuple[Tensor, int, int]:
    """A thinned grid in which one token is exactly the one asked for, and its place."""
    import torch

    here = row // step, col // step
    if step > 1:
        patches = patches.clone()
        patches[here] = torch.from_numpy(sink.read(row, col, 1, 1)[0, 0].astype(np.float32))
    return patches, *here
