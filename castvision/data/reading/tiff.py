"""TIFF, BigTIFF, GeoTIFF, OME-TIFF and the slides that are TIFFs: tiles or strips, planes, pages, pyramids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.decoding import Decoded, Pixels, finish_tiff
from castvision.data.reading.images import orient, resolve_alpha
from castvision.data.reading.reader import Facts, ImageReader, make_levels
from castvision.data.reading.segments import NotByWindows, SegmentCache, decode_segment, read_page, segment_shape
from castvision.data.reading.tiff_layout import Layer, find_layers
from castvision.data.reading.tiff_tags import channel_names, georeference, microns_per_pixel, nodata_value, orientation

if TYPE_CHECKING:
    from pathlib import Path


class TiffReader(ImageReader):
    """Windows of a TIFF; see `castvision.data.open_image`."""

    path: Path
    _tiff: Any = None

    def _connect(self) -> Facts:
        import tifffile

        self._tiff = tiff = tifffile.TiffFile(self.path)
        tiff.filehandle.set_lock(True)  # for threads that read at the same time
        self._layers = find_layers(tiff, self.options.page)
        self._cache = SegmentCache(self.options.cache_bytes)
        first = self._layers[0]
        self._page = page = first.pages[0].aspage()
        self._orientation = orientation(page)
        for layer in self._layers:
            _check_complete(layer, tiff.filehandle.size)
        _check_decodable(page)
        sizes = [layer.size[::-1] if self._orientation >= 5 else layer.size for layer in self._layers]
        probe = self._convert(np.zeros((1, 1, first.channels), page.dtype))
        is_upright = self._orientation == 1
        place = georeference(page) if is_upright else None
        return Facts(
            make_levels(sizes),
            probe.shape[-1],
            probe.dtype,
            microns_per_pixel(tiff, page, place),
            nodata_value(page),
            place,
            channel_names(tiff, page, probe.shape[-1]),
        )

    def _disconnect(self) -> None:
        if self._tiff is not None:
            self._tiff.close()

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        layer, turn = self._layers[level], self._orientation
        whole = self.levels[level]
        if turn in (3, 4, 7, 8):
            y = whole.height - y - height
        if turn in (2, 3, 6, 7):
            x = whole.width - x - width
        window = (x, y, width, height) if turn >= 5 else (y, x, height, width)
        number = sum(len(above.pages) for above in self._layers[:level])
        parts = [read_page(page, number + place, window, self._cache) for place, page in enumerate(layer.pages)]
        raw = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return np.ascontiguousarray(orient(self._convert(raw), turn))

    def _convert(self, raw: Pixels) -> Pixels:
        """Stored samples to what `castvision.data.reading.images.read_image` gives; of a mask they stay as they are."""
        page = self._page
        if self.options.is_mask:
            return (raw ^ (page.photometric == 0)).astype(np.uint8) if raw.dtype.kind == "b" else raw
        bits = page.bitspersample if isinstance(page.bitspersample, int) else 8
        if page.photometric == 3 and page.colormap is not None:
            colours = np.moveaxis(page.colormap >> 8, 0, -1).astype(np.uint8)
            return np.asarray(colours[raw[..., 0].astype(np.intp)])
        if raw.dtype.kind == "b":
            raw = raw.astype(np.uint8) * np.uint8(255)
        elif raw.dtype == np.uint8 and bits < 8:
            raw = raw * np.uint8(255 // (2**bits - 1))
        decoded = finish_tiff(raw, page)
        return resolve_alpha(Decoded(decoded.pixels, decoded.alpha), self.options.alpha)


def _check_complete(layer: Layer, file_size: int) -> None:
    """Refuse a file that ends before its pixels do."""
    for page in layer.pages:
        offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
        shortest = min(len(offsets), len(counts))
        end = int((offsets[:shortest] + counts[:shortest]).max(initial=0))
        if end > file_size or shortest == 0:
            raise ValueError(f"the TIFF is truncated ({file_size:,} of {end:,} bytes); copy or export it again")


def _check_decodable(page: Any) -> None:
    """Decode one segment, so that what cannot be read is known before anything is started."""
    segment_shape(page)
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
