"""Bytes of one image file to pixels, without losing bits.

Pillow reads everything with 8 bits a channel and 16-bit grey. It silently cuts 16-bit colour PNGs to 8 bits, so those
go through OpenCV after Pillow has found them sound. TIFFs with more than 8 bits or with unusual channels go through
tifffile.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import threading
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import tifffile

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
MAX_PIXELS = 1 << 29
MAX_BYTES = 1 << 32
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ORIENTATION_TAG = 274
_CHANNEL_AXES = "SCIQ"
_PALETTE, _YCBCR, _LABS = 3, 6, (8, 9, 10)
_LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # compressions whose YCbCr nobody has turned into RGB
# A marker between a JPEG's segments, or in its scans, where 0xFF00 is a byte of data and 0xFFD0 to 0xFFD7 restart it.
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_END_OF_IMAGE, _START_OF_SCAN, _MARKERS_WITHOUT_LENGTH = 0xD9, 0xDA, (0x01, 0xD8)
_LARGE = 1 << 26  # pixels, below the number at which Pillow begins to warn
_limit_lock = threading.Lock()

Pixels = np.ndarray[Any, np.dtype[Any]]
Alpha = Literal["none", "straight", "premultiplied"]


@dataclass(frozen=True)
class Decoded:
    """Pixels of an image file as stored.

    Attributes:
        pixels: (height, width, channels), the file's dtype; the last channel is opacity unless ``alpha`` is "none".
        alpha: How the opacity channel, if any, acts on the colours.
        orientation: EXIF/TIFF orientation 1..8 still to be applied.
    """

    pixels: Pixels
    alpha: Alpha = "none"
    orientation: int = 1


def decode(data: bytes, page: int | None = None, keep_index: bool = False) -> Decoded:
    """Decode the bytes of an image file.

    Args:
        data: The whole file.
        page: Page of a multi-page TIFF; None for files with one image.
        keep_index: Give a palette's indices (and 0/1 of bilevel images) instead of colours.

    Raises:
        ValueError: Unknown, damaged or ambiguous content, without the file's name (other errors of the decoders pass
            through).
    """
    if data[:4] in TIFF_SIGNATURES:
        return _decode_tiff(data, page, keep_index)
    if page not in (None, 0):
        raise ValueError(f"only TIFF files have pages, got {page=}; leave page out")
    if data.startswith(_PNG) and b"IEND" not in data:
        raise ValueError("the PNG is truncated (no end marker); copy or export it again")
    if data.startswith(_JPEG) and not _jpeg_is_whole(data):
        raise ValueError("the JPEG is truncated (no end marker); copy or export it again")
    decoded = _decode_pillow(data, keep_index)
    if data.startswith(_PNG) and data[24] == 16 and data[25] in (2, 4, 6):
        return replace(_decode_png16(data), orientation=decoded.orientation)
    return decoded


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether the first picture reaches its end marker; thumbnails in it and films behind it have their own."""
    place = 2
    while marker := _MARKER.search(data, place):
        kind, place = marker[1][0], marker.end()
        if kind == _END_OF_IMAGE or (kind == _START_OF_SCAN and data.endswith(b"\xff\xd9")):
            return True  # most files end where their picture does; a walk through its scans would take time
        if kind not in _MARKERS_WITHOUT_LENGTH:
            place += int.from_bytes(data[place : place + 2], "big")
    return False


def _decode_pillow(data: bytes, keep_index: bool = False) -> Decoded:
    with _open_pillow(data) as image:
        # Pillow checks its limit once more when it loads a TIFF; so large ones are loaded one at a time
        with _own_limit() if image.width * image.height > _LARGE else contextlib.nullcontext():
            image.load()
        orientation = _exif_orientation(image)
        if keep_index and image.mode in ("1", "P"):
            return Decoded(np.array(image).astype(np.uint8)[..., None], "none", orientation)
        if image.mode in ("F", "I") or image.mode.startswith("I;16"):
            pixels = np.array(image)
            pixels = pixels.astype(pixels.dtype.newbyteorder("="))[..., None]
            return replace(_key_to_alpha(pixels, image.info.get("transparency")), orientation=orientation)
        has_alpha = image.has_transparency_data
        is_grey = image.mode in ("1", "L", "LA", "La")
        mode = ("LA" if has_alpha else "L") if is_grey else ("RGBA" if has_alpha else "RGB")
        pixels = np.array(image if image.mode == mode else image.convert(mode))
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]  # (height, width, channels)
    return Decoded(pixels, "straight" if has_alpha else "none", orientation)


def _key_to_alpha(pixels: Pixels, key: Any) -> Decoded:
    """16-bit grey (height, width, 1), of which one value may stand for transparent."""
    if not isinstance(key, int) or pixels.dtype.kind != "u":
        return Decoded(pixels)
    opacity = np.where(pixels == key, 0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    return Decoded(np.concatenate([pixels, opacity], axis=-1), "straight")


@contextlib.contextmanager
def _own_limit() -> Iterator[None]:
    # NOTE: Pillow's limit (179 million pixels) refuses the photographs of today's 200-megapixel phones; it is a module
    # global, so it is set aside under a lock and our own limit, checked before any pixel is decoded, takes its place.
    with _limit_lock:
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open_pillow(data: bytes) -> Image.Image:
    try:
        with _own_limit(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of EXIF: see _exif_orientation
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        names = ", ".join(FORMATS)
        raise ValueError(
            f"expected one of {names}, got bytes that start with {data[:12]!r}; convert or replace it"
        ) from None
    width, height = image.size
    check_size(height, width)
    return image


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


def _exif_orientation(image: Image.Image) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF blocks are common and no reason to refuse good pixels
        try:
            value = image.getexif().get(_ORIENTATION_TAG, 1)
        except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
            return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _decode_png16(data: bytes) -> Decoded:
    """16-bit colour or grey with alpha; the data has already been found sound."""
    import cv2

    pixels: Pixels | None = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16 or pixels.ndim != 3:
        raise ValueError("the 16-bit PNG cannot be decoded; save it as TIFF")
    is_grey = data[25] == 4
    order = [0, 3] if is_grey else [2, 1, 0, 3][: pixels.shape[2]]  # OpenCV's order is blue, green, red, alpha
    return Decoded(np.ascontiguousarray(pixels[..., order]), "straight" if pixels.shape[2] == 4 else "none")


def _decode_tiff(data: bytes, page: int | None, keep_index: bool = False) -> Decoded:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as tiff:
        count = len(tiff.pages)
        if count == 0 or not tiff.series:
            raise ValueError("the TIFF holds no image (truncated?); copy or export it again")
        if page is not None and not 0 <= page < count:
            raise ValueError(f"expected page in 0..{count - 1}, got {page=}")
        first = tiff.series[0].keyframe if page is None else tiff.pages[page].aspage()
        source = tiff.series[0] if page is None else first
        check_size(first.imagelength, first.imagewidth)
        if count == 1 and _is_ordinary(first):
            return _decode_pillow(data, keep_index)
        if source.nbytes > MAX_BYTES:
            raise ValueError(
                f"expected at most {MAX_BYTES:,} bytes of pixels, got {source.shape} {source.dtype} = "
                f"{source.nbytes:,}; read it by windows (castvision.data.open_image)"
            )
        pixels = _read_channels_last(source, count)
        return finish_tiff(_to_full_range(pixels, first, keep_index), first)


def _is_ordinary(page: tifffile.TiffPage) -> bool:
    """Whether Pillow reads the page without loss: up to 8 bits, grey, palette, RGB, CMYK, YCbCr, one alpha at most."""
    if page.bitspersample > 8 or page.sampleformat not in (None, 1):
        return _needs_codec(page) and page.samplesperpixel == 1 and page.bitspersample == 16
    expected = {2: 3, 5: 4, 6: 3}.get(int(page.photometric), 1)
    extra = tuple(int(kind) for kind in page.extrasamples)
    return page.samplesperpixel == expected + len(extra) and extra in ((), (1,), (2,))


def _needs_codec(page: tifffile.TiffPage) -> bool:
    """Whether tifffile lacks the page's compression (LZW, JPEG, ... come with imagecodecs)."""
    from tifffile import TIFF

    try:
        TIFF.DECOMPRESSORS[page.compression]
    except KeyError:
        return True
    return False


def channel_axes(axes: str, shape: tuple[int, ...], pages: int) -> list[str]:
    """The axis that counts channels, if there is one.

    Args:
        axes: One letter for each axis, as tifffile names them.
        shape: Their lengths.
        pages: In the file, for the message.

    Raises:
        ValueError: A stack: more than one axis beside height and width, or one that is no channel.
    """
    extra = [axis for axis, length in zip(axes, shape, strict=True) if axis not in "YX" and length > 1]
    if len(extra) > 1 or any(axis not in _CHANNEL_AXES for axis in extra) or not {"Y", "X"} <= set(axes):
        raise ValueError(
            f"expected one image, got a stack with {axes=}, {shape=}; "
            f"name one page (page=0..{pages - 1}) or save one plane"
        )
    return extra


def _read_channels_last(source: tifffile.TiffPageSeries | tifffile.TiffPage, pages: int) -> Pixels:
    axes = source.axes
    extra = channel_axes(axes, source.shape, pages)
    try:
        pixels: Pixels = source.asarray()
    except (ValueError, ImportError) as error:  # ImportError: codecs of newer Pythons' standard library
        if isinstance(error, ImportError) or "imagecodecs" in str(error):
            raise ValueError(
                f"the compression needs imagecodecs: pip install 'castvision[large-images]' ({error})"
            ) from None
        raise
    order = [axes.index("Y"), axes.index("X"), *(axes.index(axis) for axis in extra)]
    rest = [index for index in range(len(axes)) if index not in order]
    pixels = pixels.transpose(*order, *rest)
    height, width = pixels.shape[:2]
    return pixels.reshape(height, width, -1)  # (height, width, channels)


def _to_full_range(pixels: Pixels, page: tifffile.TiffPage, keep_index: bool) -> Pixels:
    """Colours of a palette, 0/255 of bilevel pages and 0..255 of 2 and 4 bits, as Pillow gives them; or as stored."""
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 8
    if keep_index:
        return (pixels ^ (page.photometric == 0)).astype(np.uint8) if pixels.dtype.kind == "b" else pixels
    if page.photometric == _PALETTE and page.colormap is not None:
        if pixels.shape[-1] != 1:
            raise ValueError(f"expected one image, got {pixels.shape[-1]} pages with palettes; name one (page=0, ...)")
        colours = np.moveaxis(page.colormap >> 8, 0, -1).astype(np.uint8)
        return np.asarray(colours[pixels[..., 0].astype(np.intp)])
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255)
    return pixels * np.uint8(255 // (2**bits - 1)) if pixels.dtype == np.uint8 and bits < 8 else pixels


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
    extra = tuple(int(kind) for kind in page.extrasamples)
    if pixels.dtype.kind not in "buif":
        raise ValueError(f"expected real numbers, got {pixels.dtype=}; save magnitude or parts as separate channels")
    if pixels.dtype.kind == "u" and photometric == 0:
        pixels = np.iinfo(pixels.dtype).max - pixels
    if pixels.dtype.kind == "u" and photometric == 5 and pixels.shape[-1] == 4:
        pixels = _cmyk_to_rgb(pixels)
    alpha: Alpha = "none"
    if extra in ((1,), (2,)) and pixels.shape[-1] in (2, 4):
        alpha = "premultiplied" if extra == (1,) else "straight"
    tag = page.tags.get(_ORIENTATION_TAG)
    orientation = int(tag.value) if tag is not None and int(tag.value) in range(1, 9) else 1
    return Decoded(np.ascontiguousarray(pixels), alpha, orientation)


def _cmyk_to_rgb(pixels: Pixels) -> Pixels:
    """Plain (not colour-managed) conversion in the file's own depth."""
    top = float(np.iinfo(pixels.dtype).max)
    light = top - pixels.astype(np.float64)
    return np.rint(light[..., :3] * light[..., 3:] / top).astype(pixels.dtype)
