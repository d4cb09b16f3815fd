"""Images held in memory as a whole: arrays, and files that are decoded from beginning to end without losing bits.

Pillow reads everything with 8 bits a channel and 16-bit grey. It cuts 16-bit colour PNGs to 8 bits in silence, so those
go through OpenCV once Pillow has found them sound; TIFFs with more bits or unusual channels go through tifffile.
"""

from __future__ import annotations

import contextlib
import io
import re
import struct
import threading
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from castvision.data.reading.georeference import Georeference, georeference_beside, georeference_from_tags
from castvision.data.reading.pam import nodata_beside
from castvision.data.reading.pixels import (
    Decoded,
    Pixels,
    check_size,
    hide_transparent,
    is_missing,
    mark_missing,
    orient,
    resolve_alpha,
    resolve_missing,
)
from castvision.data.reading.reader import (
    DECODER_ERRORS,
    Alpha,
    ImageReader,
    Options,
    UnreadableImageError,
    check_alpha,
    check_file,
    make_levels,
)
from castvision.data.reading.segments import LERC, SegmentCache, read_page
from castvision.data.reading.tiff import TIFF_SIGNATURES, channel_axes, check_pages, is_tiff, main_series
from castvision.data.reading.tiff_samples import (
    ORIENTATION_TAG,
    finish_tiff,
    known_samples,
    labels_of,
    nodata_as_read,
    palette_of,
    stored_nodata,
    to_full_range,
)
from castvision.errors import one_line

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator
    from pathlib import Path

    import tifffile

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF")
MAX_BYTES = 1 << 32
_NOT_IN_PILLOW = (34887, 34925, 50001)
_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# A marker between a JPEG's segments, or in its scans, where 0xFF00 is a byte of data and 0xFFD0 to 0xFFD7 restart it.
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_END_OF_IMAGE, _START_OF_SCAN, _MARKERS_WITHOUT_LENGTH = 0xD9, 0xDA, (0x01, 0xD8)
_LARGE = 1 << 26  # pixels, below the number at which Pillow begins to warn
_limit_lock = threading.Lock()


def read_image(
    path: str | os.PathLike[str],
    *,
    alpha: Alpha = "white",
    page: int | None = None,
    palette: Literal["colour", "index"] = "colour",
) -> Pixels:
    """Read one image without losing bits.

    PNG, JPEG, TIFF, WebP, BMP and GIF (its first frame), recognised by content, not by name. Palettes, CMYK and YCbCr
    become RGB (without colour management), bilevel images become 0/255, EXIF and TIFF orientation is applied. 16-bit,
    32-bit and float channels keep their dtype; a TIFF's pages of one size, or its planes, become channels.

    Args:
        path: The file.
        alpha: What becomes of an opacity channel: composed over white (what a viewer shows), dropped, or kept as the
            last channel.
        page: One page of a multi-page TIFF, for stacks whose pages are not channels.
        palette: Whether pixels of an image with a palette, and of a bilevel one, are colours or, as masks want them,
            the numbers stored.

    Returns:
        (height, width, channels), the file's dtype (uint8, uint16, ..., float32).

    Raises:
        FileNotFoundError: No such file.
        PermissionError: The file may not be read.
        UnreadableImageError: Not a file, empty, not an image, damaged, truncated, too large, or a stack without
            ``page``.
        ValueError: An unknown option.
    """
    decoded = _read_decoded(path, alpha, page, palette)
    return np.ascontiguousarray(orient(resolve_alpha(decoded, alpha), decoded.orientation))


def _read_decoded(path: str | os.PathLike[str], alpha: str, page: int | None, palette: str) -> Decoded:
    check_alpha(alpha)
    if palette not in ("colour", "index"):
        raise ValueError(f"expected palette to be 'colour' or 'index', got {palette=}")
    path = check_file(path)
    if (size := path.stat().st_size) > MAX_BYTES:
        raise UnreadableImageError(
            f"cannot read image {str(path)!r}: expected a file of at most {MAX_BYTES:,} bytes, got {size:,}; "
            "read it by windows (castvision.data.open_image)"
        )
    data = path.read_bytes()
    try:
        return decode(data, page, palette == "index")
    except DECODER_ERRORS as error:
        raise UnreadableImageError(f"cannot read image {str(path)!r}: {one_line(error)}") from error


def open_array(array: Pixels) -> ImageReader:
    """A reader of pixels in memory (or of a memory-mapped file: ``numpy.load(path, mmap_mode="r")``).

    Args:
        array: (height, width) or (height, width, channels), real numbers.

    Returns:
        The reader; the array is not copied.

    Raises:
        ValueError: Empty, or of another number of dimensions.
        TypeError: No array of real numbers.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"expected an array of real numbers (height, width[, channels]), got {kind}")
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"expected a non-empty array (height, width[, channels]), got {array.shape=}")
    return ArrayReader(array if array.ndim == 3 else array[..., None])


class WholeImageReader(ImageReader):
    """Windows of a file that is decoded when it is opened; see `read_image`."""

    _drops_alpha = False

    def _connect(self) -> None:
        self._pixels = self._load()
        height, width, self.channels = self._pixels.shape
        self.levels, self.dtype = make_levels([(height, width)]), self._pixels.dtype
        if self.path is not None:
            self.georeference = (self._look_at_tags if is_tiff(self.path) else self._look_beside)(self.path)
            self._leave_out(nodata_beside(self.path, self.channels))
        if self.georeference is not None and not self.georeference.is_in_degrees:
            self.mpp, self.mpp_y = self.georeference.pixel_sizes

    def _leave_out(self, nodata: tuple[float | None, ...] | None) -> None:
        """Mark what an .aux.xml calls nodata: numbers as stored, not the colours that a palette makes of them."""
        if nodata is not None and self.options.is_mask:
            self.nodata = nodata[0]
        elif nodata is not None:
            stored = _read_decoded(self.name, self.options.alpha, self.options.page, "index")
            bands = np.moveaxis(orient(stored.pixels, stored.orientation), -1, 0)[: self.channels]
            is_known = ~np.stack([is_missing(band, value) for band, value in zip(bands, nodata, strict=False)], axis=-1)
            is_known = is_known & ~np.ma.getmaskarray(self._pixels)  # a palette's one band is that of all colours
            self._pixels = mark_missing(np.ma.getdata(self._pixels), is_known)

    def _look_at_tags(self, path: Path) -> Georeference | None:
        """Where a TIFF's pixels as they are shown lie; of labels also which one stands for none."""
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            page = self.options.page
            stored = main_series(tiff)[0].keyframe if page is None else tiff.pages[page].aspage()
            if self.options.is_mask:
                self.nodata = nodata_as_read(stored, True, stored_nodata(stored))
            place = georeference_from_tags(stored.tags.valueof, path)
            turn = stored.tags.valueof(ORIENTATION_TAG, 1)
            return place and place.of_turned(turn, stored.imagelength, stored.imagewidth)

    def _look_beside(self, path: Path) -> Georeference | None:
        """Where the pixels as they are shown lie, by what lies beside the file."""
        place = georeference_beside(path)
        if place is None:
            return None
        with _own_limit():
            image = Image.open(path, formats=FORMATS)
        with image:
            return place.of_turned(_exif_orientation(image), image.height, image.width)

    def _load(self) -> Pixels:
        options = self.options
        decoded = _read_decoded(self.name, options.alpha, options.page, "index" if options.is_mask else "colour")
        self._drops_alpha = decoded.alpha != "none" and options.alpha == "white"
        if options.bands is not None and decoded.alpha != "none" and not is_tiff(self.name):  # whose may be infrared
            self._drops_alpha = decoded.pixels.shape[-1] not in options.bands
            decoded = hide_transparent(decoded) if self._drops_alpha else decoded
        resolve = resolve_alpha if options.is_mask else resolve_missing
        return orient(resolve(decoded, options.alpha), decoded.orientation)

    @property
    def has_gaps(self) -> bool:
        """Whether the file can say that pixels are missing."""
        return self._drops_alpha or np.ma.getmask(self._pixels) is not np.ma.nomask or super().has_gaps

    def close(self) -> None:
        """Let the pixels go; a second time does nothing."""
        super().close()
        self._pixels = np.empty((0, 0, 0))

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        return self._pixels[y : y + height, x : x + width].copy(order="C")


class ArrayReader(WholeImageReader):
    """Windows of an array; see `open_array`."""

    def __init__(self, pixels: Pixels) -> None:
        self._array = pixels
        super().__init__(None, Options())

    def _load(self) -> Pixels:
        return self._array

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._array,)


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
    if keep_index and data.startswith(_PNG) and data[24] in (2, 4) and data[25] == 0:
        pixels = decoded.pixels[..., :1] // np.uint8(255 // (2 ** data[24] - 1))  # which Pillow has spread over 0..255
        return replace(decoded, pixels=pixels, alpha="none")
    return decoded


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether the first picture reaches its end marker; thumbnails in it and films behind it have their own."""
    position = 2
    while marker := _MARKER.search(data, position):
        kind, position = marker[1][0], marker.end()
        if kind == _END_OF_IMAGE or (kind == _START_OF_SCAN and data.endswith(b"\xff\xd9")):
            return True  # most files end where their picture does; a walk through its scans would take time
        if kind not in _MARKERS_WITHOUT_LENGTH:
            position += int.from_bytes(data[position : position + 2], "big")
    return False


def _decode_pillow(data: bytes, keep_index: bool = False) -> Decoded:
    with _open_pillow(data) as image:
        # Pillow checks its limit once more when it loads a TIFF; so large ones are loaded one at a time
        with _own_limit() if image.width * image.height > _LARGE else contextlib.nullcontext():
            image.load()
        orientation = _exif_orientation(image)
        if data.startswith(_PNG) and data[24:26] in (b"\2\0", b"\4\0") and "transparency" in image.info:
            image.info["transparency"] *= 255 // (2 ** data[24] - 1)  # grey, of which Pillow spreads the pixels alone
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


def _exif_orientation(image: Image.Image) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF blocks are common and no reason to refuse good pixels
        try:
            value = image.getexif().get(ORIENTATION_TAG, 1)
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
        count = check_pages(tiff, page)
        source = main_series(tiff)[0] if page is None else tiff.pages[page].aspage()
        first = source.keyframe
        check_size(first.imagelength, first.imagewidth)
        if count == 1 and _is_ordinary(first) and not _is_beyond_pillow(first):
            decoded = _decode_pillow(data, keep_index)
            if keep_index:
                return _as_stored(decoded, first)
            if (nodata := stored_nodata(first)) is None:
                return decoded
            value = nodata_as_read(first, False, nodata)
            stored = _decode_pillow(data, True).pixels if value is None else decoded.pixels
            is_known = ~is_missing(stored, nodata if value is None else value)
            return replace(decoded, is_known=is_known if is_known.shape == decoded.pixels.shape else is_known[..., :1])
        if source.nbytes > MAX_BYTES:
            raise ValueError(
                f"expected at most {MAX_BYTES:,} bytes of pixels, got {source.shape} {source.dtype} = "
                f"{source.nbytes:,}; read it by windows (castvision.data.open_image)"
            )
        pixels = _read_channels_last(source, count)
        if pixels.shape[-1] != 1 and not keep_index and palette_of(first) is not None:
            raise ValueError(f"expected one image, got {pixels.shape[-1]} pages with palettes; name one (page=0, ...)")
        if keep_index:
            return labels_of(pixels, first)
        decoded = finish_tiff(to_full_range(pixels, first, keep_index), first)
        return replace(decoded, is_known=known_samples(pixels, first, stored_nodata(first), decoded.pixels.shape[-1]))


def _as_stored(decoded: Decoded, page: tifffile.TiffPage) -> Decoded:
    """Undo what Pillow does to grey: 2 and 4 bits spread over 0..255, and light for dark where white is zero."""
    is_grey = page.samplesperpixel == 1 and int(page.photometric) in (0, 1)
    if not is_grey or page.bitspersample > 8:
        return decoded
    top = 2**page.bitspersample - 1
    pixels = decoded.pixels if top == 1 else decoded.pixels // np.uint8(255 // top)
    return replace(decoded, pixels=np.uint8(top) - pixels if int(page.photometric) == 0 else pixels)


def _is_ordinary(page: tifffile.TiffPage) -> bool:
    """Whether Pillow reads the page without loss: up to 8 bits, grey, palette, RGB, CMYK, YCbCr, one alpha at most."""
    if page.bitspersample > 8 or page.sampleformat not in (None, 1):
        return _needs_codec(page) and page.samplesperpixel == 1 and page.bitspersample == 16
    expected = {2: 3, 5: 4, 6: 3}.get(int(page.photometric), 1)
    extra = tuple(int(kind) for kind in page.extrasamples)
    are_planes = page.samplesperpixel == 2 and page.planarconfig == 2  # which Pillow takes for pixels of one plane
    return not are_planes and page.samplesperpixel == expected + len(extra) and extra in ((), (1,), (2,))


def _is_beyond_pillow(page: tifffile.TiffPage) -> bool:
    """Whether Pillow refuses what tifffile reads: LERC, WebP and LZMA, and files that leave tiles or strips out."""
    return not _needs_codec(page) and (int(page.compression) in _NOT_IN_PILLOW or 0 in page.databytecounts)


def _needs_codec(page: tifffile.TiffPage) -> bool:
    """Whether tifffile lacks the page's compression (LZW, JPEG, ... come with imagecodecs)."""
    from tifffile import TIFF

    try:
        TIFF.DECOMPRESSORS[page.compression]
    except KeyError:
        return True
    return False


def _read_channels_last(source: tifffile.TiffPageSeries | tifffile.TiffPage, pages: int) -> Pixels:
    axes = source.axes
    extra = channel_axes(axes, source.shape, pages)
    try:
        if source.keyframe.compression == LERC:
            return _by_segments(source)
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


def _by_segments(source: tifffile.TiffPageSeries | tifffile.TiffPage) -> Pixels:
    """(height, width, channels) of what tifffile alone reads amiss."""
    window = 0, 0, source.keyframe.imagelength, source.keyframe.imagewidth
    pages: Any = getattr(source, "pages", [source])
    return np.concatenate([read_page(page, number, window, SegmentCache(0)) for number, page in enumerate(pages)], -1)
