"""What the stored samples of a TIFF's page mean: colours, ranges, opacity, what is missing.

Decided here for `castvision.data.reading.tiff`, which reads windows, and `castvision.data.reading.whole`, which decodes
small files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from castvision.data.reading.pixels import Decoded, Mask, Pixels, is_missing, nodata_number
from castvision.data.reading.segments import GDAL_NODATA

if TYPE_CHECKING:
    import tifffile

ORIENTATION_TAG = 274
_PALETTE, _YCBCR, _LABS = 3, 6, (8, 9, 10)
_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # compressions whose YCbCr nobody has turned into RGB
Nodata = float | tuple[float | None, ...] | None


def palette_of(page: tifffile.TiffPage) -> Pixels | None:
    """The colours (n, 3) uint8 whose indices a page's samples are, if it has a palette."""
    if page.photometric != _PALETTE or page.colormap is None:
        return None
    colours = np.moveaxis(page.colormap, 0, -1)
    return (colours >> 8 if colours.max() > 255 else colours).astype(np.uint8)  # some write 8 bits, as GDAL knows, too


def to_full_range(pixels: Pixels, page: tifffile.TiffPage, keep_index: bool) -> Pixels:
    """Colours of a palette, 0/255 of bilevel pages and 0..255 of 2 and 4 bits, as Pillow gives them.

    Args:
        pixels: (height, width, channels) as stored; indices, and maybe opacity, where there is a palette.
        page: Where they come from.
        keep_index: Leave a palette's indices and all other values as they are stored; bilevel becomes 0/1.

    Returns:
        (height, width, channels).
    """
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8
    if keep_index:
        return pixels.astype(np.uint8) if pixels.dtype.kind == "b" else pixels
    if (colours := palette_of(page)) is not None:
        painted = np.asarray(colours[pixels[..., 0].astype(np.intp)])
        if not (has_alpha(page) and pixels.shape[-1] == 2):
            return painted
        return np.concatenate([painted, (pixels[..., 1:] >> (8 * pixels.itemsize - 8)).astype(np.uint8)], axis=-1)
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    return pixels * np.uint8(255 // (2**bits - 1)) if pixels.dtype == np.uint8 and bits < 8 else pixels


def labels_of(pixels: Pixels, page: tifffile.TiffPage) -> Decoded:
    """A mask's numbers as they are stored, also where white is zero (as GDAL reads them); opacity is dropped.

    Args:
        pixels: (height, width, channels) as stored.
        page: Where they come from.
    """
    pixels = to_full_range(pixels, page, keep_index=True)
    if has_alpha(page) and pixels.shape[-1] in (2, 4):
        pixels = pixels[..., :-1]
    return Decoded(np.ascontiguousarray(pixels), "none", orientation_of(page))


def known_samples(raw: Pixels, page: tifffile.TiffPage, nodata: Nodata, channels: int) -> Mask | None:
    """Which values were measured, by what is stored: before white is zero, palettes and ranges change it.

    Args:
        raw: (height, width, samples) as stored.
        page: Where they come from.
        nodata: Of all samples, or one for each.
        channels: Of what the samples become.

    Returns:
        (height, width, channels), or (height, width, 1) where samples are no channels; None = all.
    """
    is_known: Mask | None = None
    if isinstance(nodata, tuple):
        is_known = np.stack([~is_missing(raw[..., band], value) for band, value in enumerate(nodata)], axis=-1)
    elif nodata is not None:
        is_known = ~is_missing(raw, nodata)
    if is_known is not None and raw.shape[-1] != channels:
        is_known = np.any(is_known, axis=-1, keepdims=True)
    if hides_by_opacity(page) and raw.shape[-1] == page.samplesperpixel:
        is_opaque: Mask = raw[..., -1:] > 0
        is_known = is_opaque if is_known is None else is_known & is_opaque
    return is_known


def has_alpha(page: tifffile.TiffPage) -> bool:
    """Whether the last of a page's samples is opacity."""
    extra = tuple(int(kind) for kind in page.extrasamples)
    return extra in ((1,), (2,)) and page.samplesperpixel in (2, 4)


def hides_by_opacity(page: tifffile.TiffPage) -> bool:
    """Whether the last of many samples is opacity: it stays a channel, and what it hides was never measured.

    Of two and four samples, see `has_alpha`, it may as well be an infrared that is only called so.
    """
    return not has_alpha(page) and bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2)


def finish_tiff(pixels: Pixels, page: tifffile.TiffPage) -> Decoded:
    """Apply what a page's tags say of its values: white is zero, CMYK, opacity, orientation (still to be applied).

    Args:
        pixels: (height, width, channels) as stored.
        page: Where they come from.

    Raises:
        ValueError: Complex numbers, or colours that are neither grey nor RGB nor CMYK.
    """
    photometric = int(page.photometric)
    if photometric in _LABS or (photometric == _YCBCR and int(page.compression) in _LOSSLESS):
        raise ValueError(f"expected grey, RGB, CMYK or palette colours, got {page.photometric!r}; save it as RGB")
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"expected real numbers, got {pixels.dtype=}; save magnitude or parts as separate channels")
    if pixels.dtype.kind == "u" and photometric == 0:
        is_opaque_last = bool(page.extrasamples) and int(page.extrasamples[-1]) in (1, 2)
        light = np.iinfo(pixels.dtype).max - pixels
        pixels = np.concatenate([light[..., :-1], pixels[..., -1:]], axis=-1) if is_opaque_last else light
    if pixels.dtype.kind == "u" and photometric == 5 and pixels.shape[-1] == 4:
        top = float(np.iinfo(pixels.dtype).max)
        light = top - pixels.astype(np.float64)
        pixels = np.rint(light[..., :3] * light[..., 3:] / top).astype(pixels.dtype)
    alpha: Literal["none", "straight", "premultiplied"] = "none"
    if has_alpha(page) and pixels.shape[-1] in (2, 4):
        alpha = "premultiplied" if int(page.extrasamples[0]) == 1 else "straight"
    return Decoded(np.ascontiguousarray(pixels), alpha, orientation_of(page))


def orientation_of(page: tifffile.TiffPage) -> int:
    """1..8, as EXIF numbers them."""
    value = page.tags.valueof(ORIENTATION_TAG, 1)
    return int(value) if value in range(1, 9) else 1


def stored_nodata(page: tifffile.TiffPage) -> float | None:
    """GDAL's value for missing pixels, as samples are stored."""
    return nodata_number(page.tags.valueof(GDAL_NODATA))


def alike(values: tuple[float | None, ...]) -> Nodata:
    """The one value where those of all bands are it, NaN too, else themselves."""
    return values[0] if len({repr(value) for value in values}) == 1 else values


def nodata_as_read(page: tifffile.TiffPage, keep_index: bool, value: float | None) -> float | None:
    """A stored nodata value in those that are read, see `to_full_range` and `finish_tiff`; None if it is none there."""
    if value is None or page.dtype is None or page.dtype.kind not in "bu" or not isinstance(value, int):
        return value
    is_inverted, bits = int(page.photometric) == 0, 8 * page.dtype.itemsize
    if page.dtype.kind == "b":
        value, bits = (value, bits) if keep_index else (value * 255, 8)
    if keep_index:
        return value
    if palette_of(page) is not None or int(page.photometric) == 5:
        return None
    if page.dtype == np.uint8 and isinstance(page.bitspersample, int) and page.bitspersample < 8:
        value *= 255 // (2**page.bitspersample - 1)
    return 2**bits - 1 - value if is_inverted else value
