"""Pixels, whatever file they come from: opacity, orientation, missing values, range and channels.

What is no data is decided here. Values that were never measured are told by the file (its nodata, opacity 0, its mask)
and travel as a numpy masked array (`mark_missing`), or are NaN and infinite. `holds_data` says which values count;
a pixel is empty if none of its channels does (`is_empty`), as GDAL's mask of a whole dataset has it. Of a pixel that
misses some channels only, those do not enter statistics and are a model's mean; all else of it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_PIXELS = 1 << 29
"""The largest image, tile or strip that is decoded as a whole."""
LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (Rec. 601)."""
_BAND = 1 << 22
_DARK = 64 / 255
_SLACK = 0.02  # of values meant for 0..1, after resampling
_EXACT = 1 << 53  # beyond it floats skip whole numbers

Pixels = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Decoded:
    """Pixels of an image file as stored.

    Attributes:
        pixels: (height, width, channels), the file's dtype; the last channel is opacity unless ``alpha`` is "none".
        alpha: How the opacity channel, if any, acts on the colours.
        orientation: EXIF/TIFF orientation 1..8 still to be applied.
        is_known: (height, width, channels or 1), where values were measured; None = everywhere. Opacity 0, which says
            so itself, need not stand in it.
    """

    pixels: Pixels
    alpha: Literal["none", "straight", "premultiplied"] = "none"
    orientation: int = 1
    is_known: Mask | None = None


def check_size(height: int, width: int) -> None:
    """Refuse images too large to be held in memory as a whole, and those without a pixel.

    Raises:
        ValueError: None, or more than ``MAX_PIXELS`` pixels.
    """
    if min(height, width) < 1:
        raise ValueError(f"expected at least one pixel, got {height} x {width}")
    if height * width > MAX_PIXELS:
        raise ValueError(
            f"expected at most {MAX_PIXELS:,} pixels, got {height} x {width} = {height * width:,}; cut it into tiles"
        )


def resolve_alpha(decoded: Decoded, alpha: str) -> Pixels:
    """Compose over white, drop or keep the opacity channel; see `castvision.data.open_image`."""
    pixels = decoded.pixels
    if decoded.alpha == "none" or alpha == "keep":
        return pixels
    if alpha == "drop":
        return pixels[..., :-1]
    flat = np.empty_like(pixels[..., :-1], order="C")
    rows = max(1, _BAND // max(1, pixels[:1].size))  # by bands: a whole image in float64 is 8 times its size
    for start in range(0, len(pixels), rows):
        flat[start : start + rows] = _over_white(pixels[start : start + rows], decoded.alpha)
    return flat


def resolve_missing(decoded: Decoded, alpha: str) -> Pixels:
    """The same, with the pixels that are missing or fully transparent marked; see `mark_missing`."""
    pixels = resolve_alpha(decoded, alpha)
    is_known = decoded.is_known
    if decoded.alpha != "none" and alpha == "white":  # dropped, it tells nothing
        is_opaque = decoded.pixels[..., -1:] > 0
        colours = None if is_known is None else is_known[..., : pixels.shape[-1]]
        is_known = is_opaque if colours is None else is_opaque & colours
    if is_known is not None and is_known.shape[-1] > pixels.shape[-1]:
        is_known = is_known[..., : pixels.shape[-1]]
    return pixels if is_known is None else mark_missing(pixels, is_known)


def hide_transparent(decoded: Decoded) -> Decoded:
    """The same, with what is wholly transparent missing in every channel, whether or not opacity is read."""
    is_opaque = np.broadcast_to(decoded.pixels[..., -1:] > 0, decoded.pixels.shape)
    return replace(decoded, is_known=is_opaque if decoded.is_known is None else decoded.is_known & is_opaque)


def _over_white(pixels: Pixels, alpha: str) -> Pixels:
    top = _top(pixels.dtype)
    opacity = pixels[..., -1:].astype(np.float64) / top
    colour = pixels[..., :-1].astype(np.float64)
    if alpha == "straight":
        colour *= opacity
    flat = colour + top * (1 - opacity)
    if pixels.dtype.kind in "ui":
        flat = np.rint(flat).clip(0, top)
    return flat.astype(pixels.dtype)


def orient(pixels: Pixels, orientation: int) -> Pixels:
    """Apply an EXIF or TIFF orientation, 1..8, to (height, width, channels)."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def _top(dtype: np.dtype[Any]) -> float:
    return float(np.iinfo(dtype).max) if dtype.kind in "ui" else 1.0


def to_unit_range(image: Pixels) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scale pixels to 0..1 by their dtype.

    Unsigned integers are divided by their dtype's largest value. Floats within 0..1 stay; other floats and signed
    integers, which have no agreed range, are scaled from their own smallest to their largest finite value. Non-finite
    and missing pixels become 0.

    Args:
        image: Array of any shape, numeric or bool.

    Returns:
        float32, same shape, 0..1.

    Raises:
        TypeError: Neither numbers nor bool.
    """
    if image.dtype.kind not in "buif":
        raise TypeError(f"expected an array of real numbers, got {image.dtype=}")
    low, high = unit_limits(image.dtype, [image])
    if image.dtype.kind in "bu":
        scaled: np.ndarray[Any, np.dtype[np.float32]] = np.divide(np.ma.getdata(image), high, dtype=np.float32)
        scaled[~holds_data(image)] = 0
        return scaled
    return _scale(fill_missing(image.astype(np.float64), np.nan), low, high)


def unit_limits(dtype: np.dtype[Any], parts: Iterable[Pixels]) -> tuple[float, float]:
    """The values that become 0 and 1 in `to_unit_range`, of an image that may come in parts.

    Args:
        dtype: Of the image.
        parts: Its values in parts of any shape; not read for unsigned integers and bool.

    Returns:
        (low, high), high > low.
    """
    if dtype.kind in "bu":
        return 0.0, 1.0 if dtype.kind == "b" else float(np.iinfo(dtype).max)
    finite = (np.ma.getdata(part)[holds_data(part)] for part in parts)
    ends = [(float(values.min()), float(values.max())) for values in finite if values.size]
    low, high = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else (0.0, 1.0)
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1.0)


def nodata_number(value: str | float | None) -> float | None:
    """A stated nodata value as the number it is: whole ones as int, so that 64 bits lose no digits.

    Args:
        value: As a file has it; text that is no number states none.
    """
    text = "" if value is None else str(value).strip("\0 ").partition(" ")[0]  # of several numbers, as GDAL, the first
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) <= _EXACT else number


def is_missing(pixels: Pixels, nodata: float | None) -> Mask:
    """Which values are nodata.

    Args:
        pixels: Any shape; whether values are marked as missing is not looked at, see `holds_data`.
        nodata: NaN stands for NaN; None for no such value.

    Returns:
        Same shape, bool.
    """
    if nodata is None:
        return np.zeros(pixels.shape, np.bool_)
    if np.isnan(nodata):
        return np.isnan(np.ma.getdata(pixels)) if pixels.dtype.kind == "f" else np.zeros(pixels.shape, np.bool_)
    plain = np.ma.getdata(pixels)
    with np.errstate(over="ignore"):
        value = pixels.dtype.type(nodata) if pixels.dtype.kind == "f" else nodata  # -3.4e38 as a float32 holds it
        if pixels.dtype.kind != "f" or pixels.dtype.itemsize < 4 or nodata == 0 or np.isinf(value):
            return np.asarray(plain == value)
        # as GDAL has it: files state -3.402823e+38, rounded, and hold the lowest float
        slack = 4 * float(np.finfo(pixels.dtype).eps) * abs(float(value))
        low, high = (pixels.dtype.type(float(value) + step) for step in (-slack, slack))
    return np.asarray((plain >= low) & (plain <= high))


def holds_data(pixels: Pixels, nodata: float | None = None) -> Mask:
    """Which values were measured: those that are finite, not marked as missing and not nodata.

    Args:
        pixels: Any shape; see `mark_missing`.
        nodata: See `is_missing`.

    Returns:
        Same shape, bool.
    """
    is_known: Mask = np.isfinite(np.ma.getdata(pixels))
    if nodata is not None:
        is_known &= ~is_missing(pixels, nodata)
    marked = np.ma.getmask(pixels)
    return is_known if marked is np.ma.nomask else is_known & ~marked


def is_empty(pixels: Pixels) -> Mask:
    """Which pixels hold nothing: none of their channels does.

    Args:
        pixels: (height, width, channels); see `holds_data`.

    Returns:
        (height, width), bool.
    """
    is_any: Mask = np.any(holds_data(pixels), axis=-1)
    return ~is_any


def mark_missing(pixels: Pixels, is_known: Mask) -> Pixels:
    """Pixels of which some were never measured.

    Args:
        pixels: (height, width, channels).
        is_known: (height, width, channels or 1), bool.

    Returns:
        The same values: a masked array where some are missing, else the pixels themselves.
    """
    if is_known.all():
        return pixels
    marked: Pixels = np.ma.masked_array(pixels, mask=np.broadcast_to(~is_known, pixels.shape).copy())
    return marked


def from_planes(planes: Pixels, dtype: np.dtype[Any]) -> Pixels:
    """An image as it is read, of planes that were made of it.

    Args:
        planes: (channels, height, width) float32 in the image's range, NaN where a value is missing.
        dtype: Of the image.

    Returns:
        (height, width, channels): a masked array where values are missing, of some bands too.
    """
    values = planes.transpose(1, 2, 0)
    is_known = ~np.isnan(values)
    values = np.where(is_known, values, 0)
    if dtype.kind in "iu" and dtype.itemsize > 2:  # the largest is none of float32's: a step beyond, it would become 0
        limits = np.iinfo(dtype)
        values = values.astype(np.float64).clip(float(limits.min), float(limits.max))
    return mark_missing(values.astype(dtype), is_known)


def nearest(start: int, stop: int, own: int, length: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Of a map laid over a whole image, along one axis: the pixel in which the middle of each of the image's lies.

    Args:
        start: First pixel of the image.
        stop: One beyond the last.
        own: Pixels of the map.
        length: Of the image.

    Returns:
        (stop - start,), within 0..own - 1.
    """
    return (2 * np.arange(start, stop, dtype=np.int64) + 1) * own // (2 * length)


def fill_missing(pixels: Pixels, values: Any) -> Pixels:
    """Other values in place of those that are missing or not finite.

    Args:
        pixels: (..., channels), any numeric dtype.
        values: A number, or one for each channel, in the units of the pixels.

    Returns:
        Same shape and dtype, no masked array.
    """
    plain = np.ma.getdata(pixels)
    is_known = holds_data(pixels)
    if is_known.all():
        return plain
    wanted = np.asarray(values, np.float64)
    return np.where(is_known, plain, (np.rint(wanted) if plain.dtype.kind in "ui" else wanted).astype(plain.dtype))


def stretch_range(
    image: Pixels, percentiles: tuple[float, float] = (0.1, 99.9)
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scale pixels so that the given percentiles of all values that hold data become 0 and 1 (clipped).

    For looking at images that use a small part of their dtype's range, such as 12-bit cameras in 16-bit files.

    Args:
        image: Array of any shape, numeric or bool.
        percentiles: Lower and upper percentile, 0 <= lower < upper <= 100.

    Returns:
        float32, same shape, 0..1; non-finite and missing pixels become 0.

    Raises:
        ValueError: Percentiles out of order or range.
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"expected 0 <= lower < upper <= 100, got {percentiles=}")
    values = fill_missing(image.astype(np.float64), np.nan)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, percentiles) if finite.size else (0.0, 1.0)
    return _scale(values, float(low), float(high))


def display_limits(values: Pixels) -> tuple[float, float]:
    """The values that are black and white in every picture of an image.

    They are 0 and 1 where the values keep to that range and reach a quarter of it, so that an image looks the same
    with 8 bits, with 16 and as a model's input; of darker images and of values in other units they are the 0.1 and
    99.9 percentiles.

    Args:
        values: Any shape, unsigned whole numbers divided by the largest of their dtype; only those that hold data
            are looked at, see `holds_data`.

    Returns:
        (low, high), high >= low.
    """
    known = np.ma.getdata(values)[holds_data(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = (float(limit) for limit in np.percentile(known.astype(np.float64), (0.1, 99.9)))
    keeps_to_unit = low >= -_SLACK and high <= 1 + _SLACK
    return (0.0, 1.0) if keeps_to_unit and (high >= _DARK or low == high) else (low, high)


def to_picture(image: Pixels) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Values as a person can see them, the same in every picture: see `display_limits`.

    Args:
        image: Array of any shape, numeric or bool; (n, height, width, channels) are stretched together.

    Returns:
        uint8, same shape; what holds no data is black.
    """
    divisor = float(np.iinfo(image.dtype).max) if image.dtype.kind == "u" else 1.0
    values = fill_missing(image.astype(np.float64) / divisor, np.nan)
    scaled = _scale(values, *display_limits(values))
    picture: np.ndarray[Any, np.dtype[np.uint8]] = np.rint(scaled * 255).astype(np.uint8)
    return picture


def _scale(
    values: np.ndarray[Any, np.dtype[np.float64]], low: float, high: float
) -> np.ndarray[Any, np.dtype[np.float32]]:
    span = high - low
    scaled = (values - low) / (span if span > 0 else 1.0)
    return np.nan_to_num(scaled, nan=0.0, posinf=0.0, neginf=0.0).clip(0, 1).astype(np.float32)


def match_channels(image: Pixels, in_chans: int) -> Pixels:
    """Turn grey into RGB or RGB into grey (Rec. 601 luma) where a model asks for it; other counts must agree.

    Args:
        image: (height, width, channels), float.
        in_chans: Channels the model takes.

    Returns:
        (height, width, in_chans).

    Raises:
        ValueError: The counts differ and neither is a plain grey/RGB pair.
    """
    channels = image.shape[-1]
    if channels == in_chans:
        return image
    if channels == 1 and in_chans == 3:
        return np.repeat(image, 3, axis=-1)
    if channels == 3 and in_chans == 1:
        grey: Pixels = grey_of(*np.moveaxis(image, -1, 0))[..., None]
        return grey
    raise ValueError(
        f"expected an image with {in_chans} channels for this model, got {channels}; "
        f"select channels, or create the model with in_chans={channels}"
    )


def grey_of(red: Any, green: Any, blue: Any) -> Any:
    """Luma of arrays or tensors, the same bits wherever it is computed: a product of matrices has orders of its own."""
    red, green, blue = (share * band for share, band in zip(LUMA, (red, green, blue), strict=True))
    return red + green + blue


def in_channels(pixels: Pixels, in_chans: int) -> Pixels:
    """Grey to RGB or RGB to grey in the same dtype, see `match_channels`.

    Args:
        pixels: (height, width, channels); where red, green or blue are missing, grey is that of the others.
        in_chans: Channels of the result.

    Returns:
        (height, width, in_chans), missing where no channel holds data.

    Raises:
        ValueError: Other numbers of channels.
    """
    if pixels.shape[-1] == in_chans:
        return pixels
    is_known, plain = holds_data(pixels), np.ma.getdata(pixels)
    is_long = plain.dtype.kind in "ui" and plain.dtype.itemsize >= 4  # float32 rounds the largest of 32 bits up
    wanted = match_channels(np.where(is_known, plain, 0).astype(np.float64 if is_long else np.float32), in_chans)
    if not is_known.all() and in_chans == 1:
        share = match_channels(is_known.astype(np.float32), 1)
        is_partly: Mask = (0 < is_known.sum(axis=-1, keepdims=True)) & ~is_known.all(axis=-1, keepdims=True)
        wanted = np.where(is_partly, wanted / np.where(is_partly, share, 1), wanted)
    matched: Pixels = (np.rint(wanted) if plain.dtype.kind in "bui" else wanted).astype(plain.dtype)
    is_any: Mask = np.any(is_known, axis=-1, keepdims=True)
    return mark_missing(matched, is_any)
