"""A loaded model as a predictor of tiles: range, channels and normalisation as in training, the same for every tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from castvision.data.reading import open_image
from castvision.data.reading.agreement import check_same_order
from castvision.data.reading.reader import alpha_for
from castvision.data.transforms.model_input import planes_to_input, value_limits
from castvision.inference.instances.grouping import FIELDS
from castvision.inference.values import check_units

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from castvision.data import ImageReader
    from castvision.data.input_format import InputFormat
    from castvision.data.reading.pixels import Pixels
    from castvision.inference.onnx_model import OnnxPredictor
    from castvision.inference.predictor import Predictor

    AnyPredictor: TypeAlias = Predictor | OnnxPredictor

_BAND_BYTES = 1 << 25


def open_for(predictor: AnyPredictor, path: str | os.PathLike[str], bands: Sequence[int] | None = None) -> ImageReader:
    """Open an image as those were opened that the model was trained on.

    Args:
        predictor: The model, which knows its number of channels and the bands it was trained on.
        path: The image.
        bands: Channels to read instead, see `castvision.data.open_image`; None = the model's.

    Returns:
        The reader; close it, or use ``with``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read, without these bands, with those of training in another order, or with
            values of another unit.
    """
    reader = open_as(predictor.parts.input, path, bands)
    try:
        check_same_order(predictor.parts.input.channel_names, reader)
        check_units(reader, predictor.parts.input)
    except BaseException:
        reader.close()
        raise
    return reader


def open_as(seen: InputFormat, path: str | os.PathLike[str], bands: Sequence[int] | None = None) -> ImageReader:
    """`open_for` a model that is not built yet, by what it was trained on."""
    return open_image(path, alpha=alpha_for(seen.in_chans), bands=seen.bands if bands is None else bands)


def check_channels(channels: int, in_chans: int) -> None:
    """Refuse an image whose channels no tile of a model's can be made of: grey and RGB are turned into one another.

    Raises:
        ValueError: The channels do not fit.
    """
    if channels != in_chans and {channels, in_chans} != {1, 3}:
        raise ValueError(
            f"expected an image with {in_chans} channels for this model, got {channels}; "
            f"choose channels with --bands, or train with in_chans={channels}"
        )


def model_range(predictor: AnyPredictor, reader: ImageReader, level: int = 0) -> tuple[float, float] | None:
    """The values that become 0 and 1, of an image read in bands; see `value_limits`.

    Args:
        predictor: The model, which may want the units that the image has.
        reader: The image.
        level: Of its pyramid.

    Returns:
        (low, high), high > low; None where the image keeps its units.
    """
    dtype = np.dtype(reader.dtype)
    return value_limits(dtype, _known_values(reader, level), keep_units=predictor.parts.input.keeps_units)


def _known_values(reader: ImageReader, level: int) -> Iterator[Pixels]:
    size = reader.levels[level]
    rows = max(1, _BAND_BYTES // (size.width * reader.channels * 8))
    for y in range(0, size.height, rows):
        yield reader.read_masked(y, 0, min(rows, size.height - y), size.width, level)


class TileModel:
    """Turns tiles in the image's own range into logits.

    Args:
        predictor: The model and its facts.
        channels: Of the image; grey and RGB are turned into one another.
        limits: The values that become 0 and 1; see `model_range`. None: the image keeps its units.
        is_whole: The image is stored as whole numbers, see `planes_to_input`.
        centres: Give probabilities, then centres and offsets, of a model that has them, in place of logits.

    Attributes:
        missing: What values without data are in the tiles; they become the mean, as in training.
        gives: Channels of its output.

    Raises:
        ValueError: The image's channels do not fit the model.
    """

    missing = float("nan")

    def __init__(
        self,
        predictor: AnyPredictor,
        channels: int,
        limits: tuple[float, float] | None,
        *,
        is_whole: bool = False,
        centres: bool = False,
    ) -> None:
        check_channels(channels, predictor.parts.input.in_chans)
        self.predictor, self.limits, self.is_whole = predictor, limits, is_whole
        self.takes_arrays = predictor.takes_arrays
        model: Any = predictor.model
        self._run = model.with_centres if centres else model
        self.gives = len(predictor.class_names) + (FIELDS if centres else 0)

    def __call__(self, batch: Tensor, *, context: Tensor | None = None, **where: Tensor) -> Tensor:
        """(B, channels, height, width) float32 to (B, classes, height, width); see `ContextSegmenter` for the rest."""
        if context is not None:
            where["context"] = self._to_input(context, is_whole=False)  # means of pixels are none
        logits: Tensor = self._run(self._to_input(batch, is_whole=self.is_whole), **where)
        return logits

    def _to_input(self, values: Tensor, *, is_whole: bool) -> Tensor:
        seen = self.predictor.parts.input
        return planes_to_input(values, seen.in_chans, seen.mean, seen.std, self.limits, is_whole)


def tile_model_for(predictor: AnyPredictor, reader: ImageReader, level: int = 0, *, centres: bool = False) -> TileModel:
    """The `TileModel` of an image that is open.

    Args:
        predictor: The model and its facts.
        reader: The image.
        level: Of its pyramid.
        centres: See `TileModel`.

    Raises:
        ValueError: See `TileModel`.
    """
    limits, is_whole = model_range(predictor, reader, level), np.dtype(reader.dtype).kind in "bui"
    return TileModel(predictor, reader.channels, limits, is_whole=is_whole, centres=centres)


def whole_in_a_tile(predictor: AnyPredictor, tiles: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Keywords of `castvision.inference.tiled_inference` for an image, of which a larger tile is not padded.

    Padding is in no cluster and counts nowhere, but windows and positions follow the grid of the padded tile. What is
    not larger than in training stays: there, images smaller than the crop were padded, too.

    Args:
        predictor: The model.
        tiles: Keywords, with "tile" as (height, width).
        size: (height, width) of the image.

    Returns:
        Those keywords; with one tile of the size of the image, in whole patches, if it fits into a tile.
    """
    parts, tile = predictor.parts, tiles["tile"]
    trained = parts.input.img_size
    if parts.fixed_size is not None or any(side > most for side, most in zip(size, tile, strict=True)):
        return tiles
    whole = tuple(
        max(min(crop, most), -(-side // patch) * patch)
        for side, most, crop, patch in zip(size, tile, trained, parts.patch_size, strict=True)
    )
    return tiles if whole == tile else {**tiles, "tile": whole, "overlap": 0, "halo": 0}
