"""What a TIFF's tags say of an image beside its pixels."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

from castvision.data.reading.georeference import Georeference, georeference_from_tags

if TYPE_CHECKING:
    import tifffile

MICRONS = {"nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
           "mm": 1e3, "millimeter": 1e3, "cm": 1e4, "m": 1e6, "meter": 1e6, "nanometer": 1e-3}  # fmt: skip
_ORIENTATION, _GDAL_METADATA, _GDAL_NODATA = 274, 42112, 42113
_X_RESOLUTION, _RESOLUTION_UNIT = 282, 296
_PLACEHOLDER_DPI = (72.0, 96.0)


def orientation(page: tifffile.TiffPage) -> int:
    """1..8."""
    value = page.tags.valueof(_ORIENTATION, 1)
    return int(value) if value in range(1, 9) else 1


def nodata_value(page: tifffile.TiffPage) -> float | None:
    """GDAL's value for missing pixels."""
    text = page.tags.valueof(_GDAL_NODATA)
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def georeference(page: tifffile.TiffPage) -> Georeference | None:
    """From the GeoTIFF tags."""
    return georeference_from_tags(page.tags.valueof)


def microns_per_pixel(tiff: tifffile.TiffFile, page: tifffile.TiffPage, place: Georeference | None) -> float | None:
    """Microns, or ground units, along one pixel: by OME, Aperio, GeoTIFF, ImageJ or the resolution tags."""
    for stated in (_ome_size(tiff), _aperio_size(page), None if place is None else place.pixel_size):
        if stated is not None and stated > 0:
            return stated
    return _resolution_size(tiff, page)


def _ome_size(tiff: tifffile.TiffFile) -> float | None:
    text = tiff.ome_metadata or ""
    size = re.search(r'\bPhysicalSizeX="([^"]+)"', text)
    unit = re.search(r'\bPhysicalSizeXUnit="([^"]+)"', text)
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


def _resolution_size(tiff: tifffile.TiffFile, page: tifffile.TiffPage) -> float | None:
    fraction: Any = page.tags.valueof(_X_RESOLUTION)
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


def channel_names(tiff: tifffile.TiffFile, page: tifffile.TiffPage, channels: int) -> tuple[str, ...] | None:
    """By OME or GDAL, if there is one for each channel."""
    ome = (tiff.ome_metadata or "").split("</Image>")[0]
    names = re.findall(r'<(?:\w+:)?Channel\b[^>]*\bName="([^"]*)"', ome)
    if not names:
        gdal = str(page.tags.valueof(_GDAL_METADATA, ""))
        found = re.findall(r'<Item name="DESCRIPTION" sample="(\d+)" role="description">([^<]*)<', gdal)
        names = [html.unescape(name) for _, name in sorted(found, key=lambda item: int(item[0]))]  # escaped twice
    return tuple(html.unescape(name) for name in names) if len(names) == channels else None
