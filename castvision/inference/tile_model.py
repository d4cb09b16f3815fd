"""A loaded model as a predictor of tiles: range, channels and normalisation as in training, the same for every tile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from castvision.data.reading import open_image
from castvision.data.reading.pixels import holds_data
from castvision.data.reading.reader import alpha_for
from castvision.data.transforms.model_input import planes_to_input, unit, value_limits
from castvision.inference.instances.grouping import FIELDS

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
_LOOKED_AT = 1024
_FAR = 20
_SHARES = 2


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
        ValueError: A file that cannot be read, without these bands, or with values of another unit than in
            training.
    """
    reader = open_as(predictor.parts.input, path, bands)
    try:
        _check_units(reader, predictor.parts.input)
    except BaseException:
        reader.close()
        raise
    return reader


def _check_units(reader: ImageReader, seen: InputFormat) -> None:
    """See `check_units`; looked at is a window in the middle of the smallest level."""
    if not _may_differ(np.dtype(reader.dtype), seen):
        return
    level = len(reader.levels) - 1
    size = reader.levels[level]
    height, width = min(size.height, _LOOKED_AT), min(size.width, _LOOKED_AT)
    window = (size.height - height) // 2, (size.width - width) // 2, height, width
    check_units(reader.read_masked(*window, level), np.dtype(reader.dtype), seen, repr(reader.name))


def check_pixels(image: Any, seen: InputFormat) -> None:
    """Refuse what cannot be an image for a model, before it is prepared.

    Raises:
        TypeError: No array of numpy.
        ValueError: Values of another unit than in training.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"expected an array of numpy (height, width, channels), got a {type(image).__name__}; give "
            "np.asarray(image), of tensors with the channels last"
        )
    if image.size and _may_differ(image.dtype, seen):
        check_units(image, image.dtype, seen, "the image")


def _may_differ(dtype: np.dtype[Any], seen: InputFormat) -> bool:
    return seen.keeps_units and (dtype.kind in "bu") != _has_shares(seen)


def _has_shares(seen: InputFormat) -> bool:
    return max(map(abs, seen.mean)) <= 1 and max(seen.std) <= 1


def check_units(pixels: Pixels, dtype: np.dtype[Any], seen: InputFormat, name: str) -> None:
    """Refuse values that cannot be those of the training: shares of 0..1 beside units of their own.

    What is far off is tens of deviations away.

    Args:
        pixels: Of the image, any shape; masked or NaN where there is no data.
        dtype: As the image is stored.
        seen: What the model was trained on.
        name: Of the image, for the message.

    Raises:
        ValueError: Such values.
    """
    known = np.ma.getdata(pixels)[holds_data(pixels)]
    if not known.size:
        return
    is_unsigned = dtype.kind in "bu"
    middle = float(np.median(known)) / unit(dtype)
    if not is_unsigned and abs(middle) <= _SHARES:
        return
    if min(abs(middle - mean) / std for mean, std in zip(seen.mean, seen.std, strict=True)) > _FAR:
        what = "become 0..1" if is_unsigned else "stay as they are"
        raise ValueError(
            f"expected values as in training (mean {seen.mean[0]:g}, deviation {seen.std[0]:g}), got {dtype}, "
            f"which {what}, with a median of {middle:g} in {name}; write it in the type of "
            "the training images"
        )


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
        centres: Give probabilities, then centres and offsets, of a model that has them, in place of logits.

    Attributes:
        missing: What values without data are in the tiles; they become the mean, as in training.
        gives: Channels of its output.

    Raises:
        ValueError: The image's channels do not fit the model.
    """

    missing = float("nan")

    def __init__(
        self, predictor: AnyPredictor, channels: int, limits: tuple[float, float] | None, centres: bool = False
    ) -> None:
        check_channels(channels, predictor.parts.input.in_chans)
        self.predictor, self.limits = predictor, limits
        self.takes_arrays = predictor.takes_arrays
        model: Any = predictor.model
        self._run = model.with_centres if centres else model
        self.gives = len(predictor.class_names) + (FIELDS if centres else 0)

    def __call__(self, batch: Tensor, *, context: Tensor | None = None, **where: Tensor) -> Tensor:
        """(B, channels, height, width) float32 to (B, classes, height, width); see `ContextSegmenter` for the rest."""
        if context is not None:
            where["context"] = self._to_input(context)
        logits: Tensor = self._run(self._to_input(batch), **where)
        return logits

    def _to_input(self, values: Tensor) -> Tensor:
        seen = self.predictor.parts.input
        return planes_to_input(values, seen.in_chans, seen.mean, seen.std, self.limits)


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
