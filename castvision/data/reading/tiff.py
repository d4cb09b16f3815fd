"""TIFF, BigTIFF, GeoTIFF, OME-TIFF and the slides that are TIFFs: tiles or strips, planes, pages, pyramids.

`TiffReader` reads windows. What a file's layout and its tags mean is decided here for it and for
`castvision.data.reading.whole`, which decodes small files.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from castvision.data.reading.georeference import Georeference, georeference_from_tags
from castvision.data.reading.pam import nodata_beside
from castvision.data.reading.pixels import Mask, Pixels, mark_missing, orient, resolve_missing
from castvision.data.reading.reader import ImageReader, make_levels
from castvision.data.reading.segments import NotByWindows, SegmentCache, check_decodable, read_page, segment_count
from castvision.data.reading.tiff_samples import (
    Nodata,
    alike,
    finish_tiff,
    has_alpha,
    hides_by_opacity,
    known_samples,
    labels_of,
    nodata_as_read,
    orientation_of,
    stored_nodata,
    to_full_range,
)

if TYPE_CHECKING:
    import tifffile

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MICRONS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
           "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "m": 1e6, "meter": 1e6, "nanometer": 1e-3}  # fmt: skip
_CHANNEL_AXES = "SCIQ"
_GDAL_METADATA = 42112
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_PLACEHOLDER_DPI = (72.0, 96.0)


class TiffReader(ImageReader):
    """Windows of a TIFF; see `castvision.data.open_image`."""

    path: Path
    _marks_missing = True

    def _connect(self) -> None:
        import tifffile

        self._tiff = tiff = self._files.enter_context(tifffile.TiffFile(self.path))
        tiff.filehandle.set_lock(True)  # for threads that read at the same time
        self._layers = _find_layers(tiff, self.options.page)
        self._cache = SegmentCache(self.options.cache_bytes)
        first = self._layers[0]
        self._page = page = first.pages[0].aspage()
        self._orientation = orientation_of(page)
        for layer in self._layers:
            _check_complete(layer, tiff.filehandle.size)
        check_decodable(page)
        is_turned = self._orientation >= 5
        self.levels = make_levels([layer.size[::-1] if is_turned else layer.size for layer in self._layers])
        self._masks = _find_masks(tiff, self._layers) if not self.options.page else [None for _ in self._layers]
        self._has_masks = any(mask is not None for mask in self._masks)
        inside = stored_nodata(page)
        beside = nodata_beside(self.path, first.channels, inside)
        self._stored_nodata: Nodata = inside if beside is None else alike(beside)
        one = None if isinstance(self._stored_nodata, tuple) else self._stored_nodata
        self.nodata = nodata_as_read(page, self.options.is_mask, one)
        probe = self._convert(np.zeros((1, 1, first.channels), page.dtype))
        self.channels, self.dtype = probe.shape[-1], probe.dtype
        self._drops_alpha = self.options.alpha == "white" and has_alpha(page)
        ground = georeference_from_tags(page.tags.valueof, self.path)
        self.georeference = ground and ground.of_turned(self._orientation, *first.size)
        across, down = _microns_per_pixel(tiff, page, ground)
        self.mpp, self.mpp_y = (down, across) if is_turned else (across, down)
        self.channel_names = _channel_names(tiff, page, self.channels)

    def _read(self, y: int, x: int, height: int, width: int, level: int) -> Pixels:
        layer, turn = self._layers[level], self._orientation
        whole = self.levels[level]
        if turn in (3, 4, 7, 8):
            y = whole.height - y - height
        if turn in (2, 3, 6, 7):
            x = whole.width - x - width
        window = (x, y, width, height) if turn >= 5 else (y, x, height, width)
        number = sum(len(above.pages) for above in self._layers[:level])
        parts = [read_page(page, index, window, self._cache) for index, page in enumerate(layer.pages, start=number)]
        raw = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        is_inside = None
        if (mask := self._masks[level]) is not None:
            is_inside = read_page(mask, -1 - level, window, self._cache) > 0
        return orient(self._convert(raw, is_inside), turn).copy(order="C")

    @property
    def has_gaps(self) -> bool:
        """Whether the file can say that pixels are missing."""
        by_opacity = self._drops_alpha or hides_by_opacity(self._page)
        return self._stored_nodata is not None or by_opacity or self._has_masks or super().has_gaps

    def _convert(self, raw: Pixels, is_inside: Mask | None = None) -> Pixels:
        """Stored samples to what `castvision.data.open_image` promises; of a mask they stay as they are."""
        if self.options.is_mask:
            labels = labels_of(raw, self._page).pixels
            return labels if is_inside is None else mark_missing(labels, is_inside)
        decoded = finish_tiff(to_full_range(raw, self._page, keep_index=False), self._page)
        is_known = known_samples(raw, self._page, self._stored_nodata, decoded.pixels.shape[-1])
        if is_inside is not None:
            is_known = is_inside if is_known is None else is_known & is_inside
        return resolve_missing(replace(decoded, is_known=is_known), self.options.alpha)


def is_tiff(path: str | Path) -> bool:
    """Whether a file begins as TIFFs do."""
    with Path(path).open("rb") as file:
        return file.read(4) in TIFF_SIGNATURES


def _check_complete(layer: Layer, file_size: int) -> None:
    """Refuse a file that ends before its pixels do, or does not say where they are."""
    for page in layer.pages:
        offsets, counts = np.asarray(page.dataoffsets, np.int64), np.asarray(page.databytecounts, np.int64)
        shortest = min(len(offsets), len(counts))
        end = int((offsets[:shortest] + counts[:shortest]).max(initial=0))
        if end > file_size or shortest == 0:
            raise ValueError(f"the TIFF is truncated ({file_size:,} of {end:,} bytes); copy or export it again")
        if not page.is_contiguous and shortest < (wanted := segment_count(page.keyframe)):
            raise ValueError(
                f"the TIFF names {shortest:,} of its {wanted:,} tiles or strips (its size is damaged, or their list); "
                "copy or export it again"
            )


# Layout


@dataclass(frozen=True)
class Layer:
    """One resolution: pages of one size whose samples, one page after the other, are the channels.

    Attributes:
        pages: Of tifffile.
        size: (height, width), as stored.
        channels: Samples of all pages together.
        dtype: Of a sample.
    """

    pages: tuple[Any, ...]
    size: tuple[int, int]
    channels: int
    dtype: Any


def check_pages(tiff: tifffile.TiffFile, page: int | None) -> int:
    """How many pages there are.

    Args:
        tiff: An open file.
        page: The one wanted; None for the file's first image.

    Raises:
        ValueError: No image, or no such page.
    """
    count = len(tiff.pages)
    if count == 0 or not tiff.series:
        raise ValueError("the TIFF holds no image (truncated?); copy or export it again")
    if page is not None and not 0 <= page < count:
        raise ValueError(f"expected page in 0..{count - 1}, got {page=}")
    return count


def main_series(tiff: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """All series, that of the image first: a page that calls itself a reduced copy of another may stand before it."""
    series = list(tiff.series)
    if not series[0].keyframe.is_reduced:
        return series
    pages = [one.keyframe for one in series]
    pixels = [page.imagelength * page.imagewidth for page in pages]
    whole = [
        not page.is_reduced and not page.is_mask and size > pixels[0] for page, size in zip(pages, pixels, strict=True)
    ]
    first = whole.index(True) if any(whole) else 0
    return [series[first], *series[:first], *series[first + 1 :]]


def _find_layers(tiff: tifffile.TiffFile, page: int | None) -> list[Layer]:
    """The image and its smaller copies, largest first.

    Copies are found as sub-images (OME, and what tifffile writes), as reduced pages (GDAL's overviews), as a slide
    maker's levels, and as plain pages each a whole factor smaller than the first.
    """
    count = check_pages(tiff, page)
    if page is not None:
        return [_page_layer(tiff.pages[page].aspage())]
    first, *others = main_series(tiff)
    candidates = list(first.levels) if len(first.levels) > 1 else [first, *others]
    layers = [_series_layer(candidates[0], count)]
    for series in candidates[1:]:
        if _is_copy(series, layers):
            layers.append(_series_layer(series, count))
    return layers


def _find_masks(tiff: tifffile.TiffFile, layers: list[Layer]) -> list[Any]:
    """The page of each layer that says which pixels are there (GDAL's mask inside a file), None where there is none."""
    pages: list[Any] = [copy.keyframe for series in tiff.series for copy in series.levels]
    sizes = {(page.imagelength, page.imagewidth): page for page in reversed(pages) if page.is_mask}
    return [sizes.get(layer.size) for layer in layers]


def _page_layer(page: Any) -> Layer:
    planes, depth, height, width, samples = page.shaped
    if depth > 1:
        raise ValueError(f"expected one image, got a volume of depth {depth}; save one plane")
    return Layer((page,), (height, width), planes * samples, page.dtype)


def _series_layer(series: tifffile.TiffPageSeries, count: int) -> Layer:
    channel_axes(series.axes, series.shape, count)
    pages = tuple(series.pages)
    one = _page_layer(series.keyframe)
    channels = one.channels * len(pages)
    total = int(np.prod(series.shape, dtype=np.int64))
    if any(page is None for page in pages) or total != channels * one.size[0] * one.size[1]:
        raise NotByWindows(
            f"expected a page for each plane, got {len(pages)} page(s) for axes={series.axes}, shape={series.shape}; "
            "write the image again with one page a plane"
        )
    return Layer(pages, one.size, channels, one.dtype)


def _is_copy(series: tifffile.TiffPageSeries, layers: list[Layer]) -> bool:
    """Whether a series shows the first image in a smaller size than the last found."""
    page: Any = series.keyframe
    base, last = layers[0], layers[-1]
    if len(series.pages) != len(base.pages) or page.dtype != base.dtype or page.is_mask or 0 in page.shaped:
        return False
    if page.shaped[0] * page.shaped[4] * len(series.pages) != base.channels:
        return False
    height, width = page.imagelength, page.imagewidth
    if height > last.size[0] or width > last.size[1] or (height, width) == last.size:
        return False
    factor = max(base.size) / max(height, width)
    return factor >= 1.5 and all(
        abs(full / factor - small) < 1.5 for full, small in zip(base.size, (height, width), strict=True)
    )


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


# Tags


def _microns_per_pixel(
    tiff: tifffile.TiffFile, page: tifffile.TiffPage, ground: Georeference | None
) -> tuple[float | None, float | None]:
    """Microns, or ground units, across and down a stored pixel: by OME, Aperio, GeoTIFF, ImageJ or resolution tags."""
    aperio = _aperio_size(page)
    for across, down in ((_ome_size(tiff, "X"), _ome_size(tiff, "Y")), (aperio, aperio)):
        if across is not None and across > 0:
            return across, down if down is not None and down > 0 else across
    if ground is not None:
        return (None, None) if ground.is_in_degrees else ground.pixel_sizes
    across, down = (_resolution_size(tiff, page, tag) for tag in (_X_RESOLUTION, _Y_RESOLUTION))
    return across, down or across


def _ome_size(tiff: tifffile.TiffFile, axis: Literal["X", "Y"]) -> float | None:
    text = (tiff.ome_metadata or "").split("</Image>")[0]  # a later image's size is not the first one's
    size = re.search(rf'\bPhysicalSize{axis}="([^"]+)"', text)
    unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', text)
    factor = MICRONS.get(html.unescape(unit[1]) if unit else "µm")
    return None if size is None or factor is None else _number(size[1], factor)


def _aperio_size(page: tifffile.TiffPage) -> float | None:
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)", page.description or "")
    return None if found is None else _number(found[1])


def _number(text: str, factor: float = 1.0) -> float | None:
    try:
        return float(text) * factor
    except ValueError:
        return None


def _resolution_size(tiff: tifffile.TiffFile, page: tifffile.TiffPage, tag: int) -> float | None:
    fraction: Any = page.tags.valueof(tag)
    if not isinstance(fraction, tuple) or len(fraction) != 2 or 0 in fraction:
        return None
    per_unit = fraction[0] / fraction[1]
    if tiff.imagej_metadata is not None:
        factor = MICRONS.get(str(tiff.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ"))
        return None if factor is None else factor / per_unit
    unit = page.tags.valueof(_RESOLUTION_UNIT, 2)
    if unit == 2 and per_unit in _PLACEHOLDER_DPI:  # what programs write that know nothing
        return None
    return {2: 25_400 / per_unit, 3: 10_000 / per_unit}.get(int(unit))


def _channel_names(tiff: tifffile.TiffFile, page: tifffile.TiffPage, channels: int) -> tuple[str, ...] | None:
    """By OME, or GDAL's descriptions or colours, if there is one for each channel."""
    ome = (tiff.ome_metadata or "").split("</Image>")[0]
    names = re.findall(r'<(?:\w+:)?Channel\b[^>]*\bName="([^"]*)"', ome)
    if not names:
        gdal = str(page.tags.valueof(_GDAL_METADATA, ""))
        for role in ("description", "colorinterp"):
            found = re.findall(rf'<Item name="{role.upper()}" sample="(\d+)" role="{role}">([^<]*)<', gdal)
            if len(names) != channels:
                found.sort(key=lambda item: int(item[0]))
                names = [html.unescape(name) for _, name in found]  # escaped twice
    return tuple(html.unescape(name) for name in names) if len(names) == channels else None
