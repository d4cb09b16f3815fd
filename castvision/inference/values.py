"""Whether an image's values can be of the kind a model was trained on: their units, and how many bits are in use.

Pixels of whole numbers without a sign are shares of what their type can hold, in training as here; signed numbers and
fractions keep their units, if the model was trained on such. So 12 bits in a file of 16 are a dark picture, and
degrees Celsius an icy landscape to a model of kelvins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from castvision.data.reading.pixels import holds_data
from castvision.data.transforms.model_input import unit

if TYPE_CHECKING:
    from typing import Any

    from castvision.data import ImageReader
    from castvision.data.input_format import InputFormat

_SIDE = 256
_FAR = 20
_SHARES = 2
_APART = 1.5
"""Deviations from the mean of training, beyond which all bands must lie to be remarked on; black is 1.8 to 2.1 of
ImageNet's below theirs, the largest of 12 bits in 16 is 1.5 to 1.9."""
_EVEN = 0.29
"""Deviation of shares that are spread evenly; where more is stated (.5), it is a choice and was not measured."""


def check_units(reader: ImageReader, seen: InputFormat) -> None:
    """Refuse values that cannot be those of training: shares of 0..1 beside units of their own.

    Args:
        reader: The image.
        seen: What the model was trained on.

    Raises:
        ValueError: Values of the other kind that are tens of deviations off.
    """
    if _may_differ(np.dtype(reader.dtype), seen):
        _check_middle(_sample(reader), np.dtype(reader.dtype), seen, repr(reader.name))


def check_pixels(image: Any, seen: InputFormat) -> None:
    """Refuse what cannot be an image for a model, before it is prepared.

    Args:
        image: What was given as (height, width) or (height, width, channels).
        seen: What the model was trained on.

    Raises:
        TypeError: No array of numpy.
        ValueError: See `check_units`.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(
            f"expected an array of numpy (height, width, channels), got a {type(image).__name__}; give "
            "np.asarray(image), of tensors with the channels last"
        )
    if _may_differ(image.dtype, seen):
        _check_middle([np.ma.getdata(image)[holds_data(image)] / unit(image.dtype)], image.dtype, seen, "the image")


def _may_differ(dtype: np.dtype[Any], seen: InputFormat) -> bool:
    has_shares = max(map(abs, seen.mean)) <= 1 and max(seen.std) <= 1
    return seen.keeps_units and (dtype.kind in "bu") != has_shares


def _check_middle(
    bands: list[np.ndarray[Any, np.dtype[Any]]], dtype: np.dtype[Any], seen: InputFormat, name: str
) -> None:
    known = np.concatenate(bands) if bands else np.empty(0)
    if not known.size:
        return
    middle, is_unsigned = float(np.median(known)), dtype.kind in "bu"
    if not is_unsigned and abs(middle) <= _SHARES:
        return
    if min(abs(middle - mean) / std for mean, std in zip(seen.mean, seen.std, strict=True)) > _FAR:
        what = "become 0..1" if is_unsigned else "stay as they are"
        raise ValueError(
            f"expected values as in training (mean {seen.mean[0]:g}, deviation {seen.std[0]:g}), got {dtype}, "
            f"which {what}, with a median of {middle:g} in {name}; write it in the type of "
            "the training images"
        )


def remark_on_values(reader: ImageReader, seen: InputFormat) -> str | None:
    """What a person is to be told of an image whose values all lie on one side of those of training.

    Args:
        reader: The image.
        seen: What the model was trained on.

    Returns:
        None where they do not, or where each image is brought to 0..1 by itself.
    """
    dtype = np.dtype(reader.dtype)
    if dtype.kind != "u" and not seen.keeps_units:
        return None
    bands = _sample(reader)
    if not bands:
        return None
    ends = np.array([np.quantile(band, [0.01, 0.99]) for band in bands])  # C, 2
    mean, std = (np.array(values)[:, None] for values in (seen.mean, seen.std))
    spread = np.minimum(std, _EVEN) if dtype.kind == "u" else std
    apart = (ends - mean) / spread  # of grey and RGB, where the other is wanted, each band
    trained = f"in training they were around {seen.mean[0]:.3g} ± {seen.std[0]:.3g}"
    of_type = f" of what {dtype} holds" if dtype.kind == "u" else ""
    why = "fewer bits in use, or other units?" if dtype.kind == "u" else "other units?"
    if (apart[:, 1] < -_APART).all():
        return f"nearly all values are below {ends[:, 1].max():.3g}{of_type}, {trained}: {why}"
    if (apart[:, 0] > _APART).all():
        return f"nearly all values are above {ends[:, 0].min():.3g}{of_type}, {trained}: {why}"
    return None


def _sample(reader: ImageReader) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Values of each band, in the units of the mean, of nine windows of the smallest level; empty if one has none."""
    level = len(reader.levels) - 1
    size = reader.levels[level]
    height, width = min(size.height, _SIDE), min(size.width, _SIDE)
    rows, cols = ({round(share * rest) for share in (0, 0.5, 1)} for rest in (size.height - height, size.width - width))
    read = [reader.read_masked(y, x, height, width, level) for y in sorted(rows) for x in sorted(cols)]
    pixels = [part.reshape(-1, part.shape[-1]) for part in read]
    known = np.concatenate([holds_data(part) for part in pixels])
    values = np.concatenate([np.ma.getdata(part) for part in pixels]).astype(np.float64) / unit(pixels[0].dtype)
    bands = [of_band[is_known] for of_band, is_known in zip(values.T, known.T, strict=True)]
    return bands if all(len(band) for band in bands) else []
