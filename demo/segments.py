"""The tabs Segment and Big image: classes by a segmenter as prediction has them, or features tile by tile."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.inference.fitted import FittedModel
from castvision.inference.sinks import middles
from castvision.inference.tile_model import TileModel, model_range, open_for, whole_in_a_tile
from castvision.inference.tiled import TiledResult, tiled_inference
from castvision.inference.token_tiles import FeatureSink, TokenPredictor, embed_tokens
from castvision.inference.whole_images import whole_image
from castvision.visualization.features import enlarged, principal_colours
from castvision.visualization.pictures import background_class, cluster_colours, overlay_mask

from .drawing import table

if TYPE_CHECKING:
    from collections.abc import Callable

    from castvision.data import ImageReader
    from castvision.inference.predictor import Predictor
    from castvision.visualization.pictures import RGB, Labels

    from .sessions import Session
    from .studio import Studio

FEATURES = "features of the model"
"""What the tab Big image makes without a segmenter."""
_MOST_PIXELS = 8_000_000
_PICTURE_VALUES = 1 << 24


def segmenter(studio: Studio, name: str | None) -> Predictor:
    """A segmenter by name.

    Raises:
        ValueError: None was given to the demo, or none of this name.
    """
    if not studio.segmenters:
        raise ValueError("expected a segmenter, none was given; start the demo with --segmenter CHECKPOINT")
    if name not in studio.segmenters:
        raise ValueError(f"expected one of the segmenters {', '.join(studio.segmenters)}, got {name!r}")
    return studio.segmenters[name]


def segment(
    studio: Studio, session: Session, name: str | None, progress: Callable[[int, int], None], *, is_big: bool = False
) -> tuple[Labels, str, str]:
    """The class of each pixel, as ``castvision predict`` finds it.

    Args:
        studio: With the segmenters.
        session: Of the page.
        name: Of the segmenter.
        progress: Told (tiles done, tiles in all); stops the work by raising.
        is_big: However large the image is.

    Returns:
        Labels for the screen, (height', width') int64, -1 without data; a line; a table (HTML) with areas.

    Raises:
        ValueError: No photograph, one that does not fit the model, one too large for a page that waits, or stopped.
    """
    predictor, photograph = segmenter(studio, name), session.chosen
    height, width = photograph.size
    if height * width > _MOST_PIXELS and not is_big:
        raise ValueError(
            f"expected at most {_MOST_PIXELS:,} pixels here, got {height} × {width}; the tab Big image shows progress "
            "and can be stopped"
        )
    with open_for(predictor, photograph.path) as reader:
        result = tiled_inference(
            reader, _model(predictor, reader), device=predictor.device, progress=progress, **_tiles(predictor, reader)
        )
        area, unit = reader.pixel_area, reader.area_unit
    labels = np.asarray(result.labels)
    step = max(1, max(labels.shape) // 1024)
    small: Labels = labels[np.ix_(*(middles(length, step) for length in labels.shape))].astype(np.int64)
    small[small == np.iinfo(labels.dtype).max] = -1
    told = f"{photograph.name}: {height} × {width}, {result.tiles_run:,} tiles, {result.seconds:.1f} s"
    return small, told, _areas(result, predictor.class_names, area, unit)


def _model(predictor: Predictor, reader: ImageReader) -> FittedModel | TileModel:
    if predictor.parts.input.resize == "fit":
        return FittedModel(predictor, reader.dtype, reader.name)
    return TileModel(predictor, reader.channels, model_range(predictor, reader))


def _tiles(predictor: Predictor, reader: ImageReader) -> dict[str, Any]:
    parts = predictor.parts
    if parts.input.resize == "fit":
        return {"context_size": parts.context_size, "mask_nodata": True, **whole_image(reader, 0)}
    tile = parts.fixed_size or parts.input.img_size
    tiles = {"tile": tile, "overlap": min(tile) // 8, "context_size": parts.context_size, "mask_nodata": True}
    return whole_in_a_tile(predictor, tiles, (reader.height, reader.width))


def _areas(result: TiledResult, names: tuple[str, ...], area: float | None, unit: str | None) -> str:
    total = max(sum(result.class_pixels), 1)
    untinted = background_class(names)
    colours = cluster_colours(len(names)).tolist()
    header = ["", "class", "share", "pixels", *([] if area is None else [f"area, {unit}"])]
    rows: list[list[str | tuple[int, ...]]] = []
    for number, (name, pixels) in enumerate(zip(names, result.class_pixels, strict=False)):
        if pixels:
            colour = () if number == untinted else tuple(colours[number])
            ground = [] if area is None else [f"{pixels * area:,.6g}"]
            rows.append([colour, name, f"{pixels / total:.3f}", f"{pixels:,}", *ground])
    return table(header, rows, "area of each class")


def tinted(studio: Studio, session: Session, name: str | None, labels: Labels, opacity: float) -> tuple[RGB, RGB]:
    """The photograph, and the photograph with its classes laid over it."""
    picture = session.chosen.picture
    untinted = background_class(segmenter(studio, name).class_names)
    return picture, overlay_mask(picture, labels, opacity=opacity, untinted=untinted)


def features_by_tiles(
    studio: Studio, session: Session, tile: int, progress: Callable[[int, int], None]
) -> tuple[RGB, str]:
    """Features of an image of any size, tile by tile, as colours.

    Args:
        studio: With the model.
        session: Of the page, in whose folder the features lie while they are computed.
        tile: Side in pixels, a multiple of the patch.
        progress: See `segment`.

    Returns:
        The picture, and a line.

    Raises:
        ValueError: No photograph, one that does not fit the model, a tile it does not take, or stopped.
    """
    photograph = session.chosen
    session.folder.mkdir(exist_ok=True)
    sink = FeatureSink(session.folder / "features.raw")
    start = time.perf_counter()
    try:
        with open_for(studio.model.predictor, photograph.path) as reader:
            limits = model_range(studio.model.predictor, reader)
            predictor = TokenPredictor(studio.model, reader.channels, limits)
            found = embed_tokens(predictor, reader, sink, tile=tile, batch_size=1, progress=progress)
        patches, step = sink.thinned(_PICTURE_VALUES)
        picture: RGB = (principal_colours(patches) * 255).round().byte().numpy()
    finally:
        sink.discard()
    rows, cols = sink.shape[:2]
    seconds = time.perf_counter() - start
    speed = photograph.size[0] * photograph.size[1] / 1e6 / seconds
    told = (
        f"{photograph.name}: {photograph.size[0]} × {photograph.size[1]}, {found['tiles']:,} tiles, {rows} × {cols} "
        f"tokens, {seconds:.1f} s, {speed:.2f} megapixels/s"
    )
    return enlarged(picture, max(studio.model.patch) * step), told
