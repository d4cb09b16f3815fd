"""From a path to the reader that can read it: by content first, by suffix where the content says too little."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from castvision.data.reading.pixels import Pixels
from castvision.data.reading.raster import RasterReader
from castvision.data.reading.reader import Alpha, ImageReader, Options, check_alpha, check_file
from castvision.data.reading.segments import NotByWindows
from castvision.data.reading.slide import SlideReader
from castvision.data.reading.tiff import TIFF_SIGNATURES, TiffReader
from castvision.data.reading.whole import WholeImageReader
from castvision.data.reading.zarr import ZarrReader

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif"})
"""What ordinary images are called; files themselves are recognised by their content."""
SLIDE_SUFFIXES = (".mrxs", ".bif", ".scn", ".vms", ".vmu", ".svslide", ".czi", ".dcm")
"""Slides whose first file looks like something else, or whose tiles overlap: openslide's from the start."""
_RASTER_SUFFIXES = (".vrt", ".img", ".jp2", ".j2k", ".asc", ".hgt", ".dem", ".bil", ".ntf")
_RASTER_SIGNATURES = (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"EHFA_HEADER_TAG", b"<VRTDataset")
_ZARR_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
_WHOLE_TIFF_BYTES = 256 << 20


def open_image(
    path: str | os.PathLike[str],
    *,
    alpha: Alpha = "white",
    page: int | None = None,
    cache_bytes: int = 64 << 20,
    bands: Sequence[int] | None = None,
) -> ImageReader:
    """Open an image of any size.

    TIFF (BigTIFF, GeoTIFF, OME-TIFF, SVS, NDPI; tiles or strips, pyramids) is read by windows, so are zarr arrays,
    OME-Zarr, slides openslide knows and rasters GDAL knows (extra ``large-images``). PNG, JPEG, WebP, BMP and GIF are
    decoded as a whole by `castvision.data.reading.whole.read_image`, which refuses what does not fit in memory.
    Colours, palettes, CMYK, orientation and opacity become what they become there; no depth is lost. Which pixels are
    no data says the reader's ``read_masked``.

    Args:
        path: A file, or a zarr folder.
        alpha: What becomes of an opacity channel: composed over white, dropped, or kept as the last channel.
        page: One page of a multi-page TIFF, for stacks whose pages are not channels.
        cache_bytes: Decoded tiles a TIFF's reader may hold.
        bands: Channels to read, in this order, numbered from 1 on as GDAL does; opacity is one like the others then.
            None = all.

    Returns:
        The reader; close it, or use ``with``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Empty, damaged, truncated, not an image, or one that cannot be read by windows; the file is named.
        ImportError: A format of an extra that is not installed.
    """
    check_alpha(alpha)
    if bands is not None:
        return _open(Path(path), Options("keep", page, cache_bytes, bands=tuple(bands)))
    return _open(Path(path), Options(alpha, page, cache_bytes))


def open_mask(path: str | os.PathLike[str], *, cache_bytes: int = 64 << 20) -> ImageReader:
    """Open an image of labels: a palette's indices, a bilevel image's 0 and 1 and all other values as they are stored.

    Opacity is dropped, and channels that are all alike (grey saved as RGB) are one.

    Args:
        path: A file, or a zarr folder, with one whole number a pixel.
        cache_bytes: Decoded tiles a TIFF's reader may hold.

    Returns:
        The reader; close it, or use ``with``.

    Raises:
        FileNotFoundError: No such file.
        ValueError: See `open_image`; also colours, or fractions.
        ImportError: A format of an extra that is not installed.
    """
    return _open(Path(path), Options("drop", None, cache_bytes, is_mask=True))


def read_mask(path: str | os.PathLike[str]) -> Pixels:
    """Read a whole image of labels.

    Args:
        path: See `open_mask`.

    Returns:
        (height, width), the file's dtype.

    Raises:
        FileNotFoundError: No such file.
        ValueError: See `open_mask`.
    """
    with open_mask(path) as reader:
        labels: Pixels = reader.read(0, 0, reader.height, reader.width)[..., 0]
    return labels


def _open(path: Path, options: Options) -> ImageReader:
    if path.is_dir() and (path.suffix == ".zarr" or any((path / name).is_file() for name in _ZARR_FILES)):
        return ZarrReader(path, options)
    check_file(path)
    with path.open("rb") as file:
        head = file.read(64)
    suffix = path.suffix.lower()
    if suffix in SLIDE_SUFFIXES:
        return SlideReader(path, options)
    if head[:4] in TIFF_SIGNATURES:
        return _open_tiff(path, options)
    if suffix in _RASTER_SUFFIXES or head.lstrip().startswith(_RASTER_SIGNATURES):
        return RasterReader(path, options)
    return WholeImageReader(path, options)


def _open_tiff(path: Path, options: Options) -> ImageReader:
    try:
        return TiffReader(path, options)
    except ValueError as error:
        if not isinstance(error.__cause__, NotByWindows):
            raise
        # without imagecodecs: openslide and Pillow know some compressions, Pillow only for what fits in memory
        if path.suffix.lower() in (".svs", ".ndpi") and importlib.util.find_spec("openslide"):
            return SlideReader(path, options)
        if not _may_be_read_whole(path):
            raise
        try:
            return WholeImageReader(path, options)
        except ValueError:
            raise error from None


def _may_be_read_whole(path: Path) -> bool:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages[0].aspage()
            return int(np.prod(page.shape, dtype=np.int64)) <= _WHOLE_TIFF_BYTES
    except (ValueError, IndexError, OSError):
        return False
