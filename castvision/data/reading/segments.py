"""Tiles and strips of a TIFF page: only those a window touches are read, and the last ones used stay decoded."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.pixels import MAX_PIXELS, Pixels, nodata_number

if TYPE_CHECKING:
    import tifffile

    Page = tifffile.TiffPage | tifffile.TiffFrame


_JPEGS = (6, 7)
LERC = 34887
GDAL_NODATA = 42113


class NotByWindows(ValueError):
    """A TIFF this reader cannot take apart, though another may read it whole."""


class SegmentCache:
    """Decoded segments, the least recently used one dropped first; safe in threads.

    Args:
        limit: Bytes held at most; the newest segment stays, whatever its size.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.size = 0
        self._lock = threading.Lock()
        self._segments: OrderedDict[tuple[int, int], Pixels] = OrderedDict()

    def get(self, key: tuple[int, int]) -> Pixels | None:
        """The segment, now the most recently used one."""
        with self._lock:
            segment = self._segments.get(key)
            if segment is not None:
                self._segments.move_to_end(key)
            return segment

    def put(self, key: tuple[int, int], segment: Pixels) -> None:
        """Keep a segment, and drop old ones beyond the limit."""
        with self._lock:
            if key in self._segments:
                return
            self._segments[key] = segment
            self.size += segment.nbytes
            while self.size > self.limit and len(self._segments) > 1:
                self.size -= self._segments.popitem(last=False)[1].nbytes


def segment_shape(page: tifffile.TiffPage) -> tuple[int, int]:
    """Height and width of a page's tiles or strips.

    Raises:
        ValueError: Too large to be decoded.
    """
    if page.is_tiled:
        shape = page.tilelength, page.tilewidth
    else:
        shape = min(page.rowsperstrip, page.imagelength), page.imagewidth
    if shape[0] * shape[1] > MAX_PIXELS and not page.is_memmappable:
        raise ValueError(
            f"expected tiles or strips of at most {MAX_PIXELS:,} pixels, got {shape[0]} × {shape[1]}; "
            "write the image again in tiles"
        )
    return shape


def segment_count(page: tifffile.TiffPage) -> int:
    """How many tiles or strips a page of its size has, planes together."""
    rows, columns = segment_shape(page)
    return page.shaped[0] * -(-page.imagelength // rows) * -(-page.imagewidth // columns)


def check_decodable(page: Any) -> None:
    """Decode one segment, so that what cannot be read is known before anything is started.

    Raises:
        NotByWindows: A compression without its codec, or colours that lie in several segments.
    """
    segment_shape(page)
    if int(page.compression) in _JPEGS and int(page.planarconfig) == 2 and page.samplesperpixel > 1:
        raise NotByWindows("JPEG with a plane for each channel has colours no plane knows; write pixels together")
    if page.is_memmappable and page.is_contiguous:
        return
    present = [index for index, count in enumerate(page.databytecounts) if count > 0 and page.dataoffsets[index] > 0]
    if not present:
        return
    handle = page.parent.filehandle
    index = present[0]
    with handle.lock:
        handle.seek(page.dataoffsets[index])
        data = handle.read(page.databytecounts[index])
    try:
        decode_segment(page, data, index)
    except (ValueError, ImportError) as error:
        if isinstance(error, ValueError) and "imagecodecs" not in str(error):
            raise
        name = getattr(page.compression, "name", page.compression)
        raise NotByWindows(
            f"{name} compression needs imagecodecs: pip install 'castvision[large-images]' ({error})"
        ) from error
    except NotImplementedError as error:
        raise NotByWindows(str(error)) from error


def decode_segment(page: Page, data: bytes | None, index: int) -> Pixels | None:
    """A tile or strip (height, width, samples); None where the file leaves it out."""
    keyframe: Any = page.keyframe
    tables = {}
    if keyframe.compression in (6, 7, 34892, 33007):
        tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
    segment, _, _ = keyframe.decode(data, index, **tables)
    if segment is None:
        return None
    if data is not None and keyframe.compression == LERC:
        return _decode_lerc(data, segment[0].shape, keyframe.dtype)
    return np.asarray(segment[0])


def _decode_lerc(data: bytes, shape: tuple[int, ...], dtype: Any) -> Pixels:
    """A segment (height, width, samples): NaN where its own mask says so, which tifffile leaves out.

    Samples of which not all are missing at the same pixels are stored one after the other, not side by side.
    """
    import imagecodecs

    decoded, masks = imagecodecs.lerc_decode(data, masks=True)
    pixels = np.array(decoded, dtype)
    if masks is not None and dtype.kind == "f":
        masks = masks[..., None] if masks.ndim < pixels.ndim else masks
        pixels[~np.broadcast_to(masks, pixels.shape)] = np.nan
    if masks is not None and pixels.ndim == 3 and masks.shape == pixels.shape:  # else one mask for all samples
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels.reshape(*pixels.shape[:2], -1)[: shape[0], : shape[1]]


def _fill_of(page: Any) -> float:
    """What tiles and strips hold that the file leaves out: the nodata value where the samples can hold it, else 0."""
    value = nodata_number(page.tags.valueof(GDAL_NODATA))
    if value is None:
        return 0
    if page.dtype.kind == "f":
        with np.errstate(over="ignore"):
            return float(page.dtype.type(value))
    limits = np.iinfo(page.dtype) if page.dtype.kind in "ui" else None
    return value if limits is not None and isinstance(value, int) and limits.min <= value <= limits.max else 0


def read_page(page: Page, number: int, window: tuple[int, int, int, int], cache: SegmentCache) -> Pixels:
    """A window of one page.

    Args:
        page: The page.
        number: Its number in the cache.
        window: (y, x, height, width), inside the page.
        cache: Of decoded segments.

    Returns:
        (height, width, samples), as stored.
    """
    keyframe: Any = page.keyframe
    y, x, height, width = window
    planes, _, _, _, contiguous = keyframe.shaped
    if keyframe.is_memmappable and page.is_contiguous:
        # NOTE: mapped anew for each window; the pages of a map that lives on would count as this process's memory.
        mapped = page.asarray(out="memmap", squeeze=False)[:, 0, y : y + height, x : x + width]
        return np.array(np.moveaxis(mapped, 0, -2), keyframe.dtype).reshape(height, width, -1)
    out = np.full((height, width, planes * contiguous), _fill_of(keyframe), keyframe.dtype)
    wanted = _touched(keyframe, window)
    missing = []
    for index, corner in wanted.items():
        segment = cache.get((number, index))
        if segment is None:
            missing.append(index)
        else:
            _paste(out, segment, corner, contiguous)
    handle: Any = page.parent.filehandle
    offsets, counts = ([values[index] for index in missing] for values in (page.dataoffsets, page.databytecounts))
    for data, index in handle.read_segments(offsets, counts, indices=missing):
        segment = decode_segment(page, data, index)
        if segment is not None:
            cache.put((number, index), segment)
            _paste(out, segment, wanted[index], contiguous)
    return out


def _touched(page: tifffile.TiffPage, window: tuple[int, int, int, int]) -> dict[int, tuple[int, int, int]]:
    """The segments under a window: index to (plane, first row, first column), counted from the window's corner."""
    y, x, height, width = window
    rows, columns = segment_shape(page)
    down, across = -(-page.imagelength // rows), -(-page.imagewidth // columns)
    return {
        (plane * down + row) * across + column: (plane, row * rows - y, column * columns - x)
        for plane in range(page.shaped[0])
        for row in range(y // rows, (y + height - 1) // rows + 1)
        for column in range(x // columns, (x + width - 1) // columns + 1)
    }


def _paste(out: Pixels, segment: Pixels, corner: tuple[int, int, int], samples: int) -> None:
    plane, row, column = corner
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + segment.shape[0], out.shape[0]), min(column + segment.shape[1], out.shape[1])
    if bottom > top and right > left:
        target = out[top:bottom, left:right, plane * samples : (plane + 1) * samples]
        target[...] = segment[top - row : bottom - row, left - column : right - column]
