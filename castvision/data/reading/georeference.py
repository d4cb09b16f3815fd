"""Where an image lies on the ground, as GeoTIFF writes it: read from tags and written back without a GIS library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

_SCALE, _TIEPOINT, _MATRIX = 33550, 33922, 34264
_KEYS, _DOUBLES, _ASCII = 34735, 34736, 34737
_RASTER_TYPE, _GEOGRAPHIC, _PROJECTED = 1025, 2048, 3072
_USER_DEFINED = 32767
_SHORT, _TEXT, _DOUBLE = 3, 2, 12

ExtraTag = tuple[int, int, int | None, Any, bool]


@dataclass(frozen=True)
class Georeference:
    """From pixels to ground coordinates, and the coordinate system's GeoTIFF keys.

    Attributes:
        transform: (a, b, c, d, e, f): ground x = a * column + b * row + c, ground y = d * column + e * row + f, where
            (0, 0) is the outer corner of the first pixel. This is the order of `affine.Affine`; GDAL's is c, a, b, f,
            d, e.
        crs: The coordinate system: "EPSG:32633" from a GeoTIFF's keys, WKT from other formats; libraries take both.
            None if not stated by a code.
        keys: GeoKeyDirectoryTag.
        doubles: GeoDoubleParamsTag.
        ascii: GeoAsciiParamsTag.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str | None = None
    keys: tuple[int, ...] = ()
    doubles: tuple[float, ...] = ()
    ascii: str = ""

    @property
    def pixel_size(self) -> float:
        """Ground units along a step of one column."""
        return float((self.transform[0] ** 2 + self.transform[3] ** 2) ** 0.5)

    def of_window(self, y: float, x: float, downsample: float = 1.0) -> Georeference:
        """The georeference of a window or a level.

        Args:
            y: Its first row, in pixels of this image.
            x: Its first column, in pixels of this image.
            downsample: How many of this image's pixels one of its pixels spans.
        """
        a, b, c, d, e, f = self.transform
        moved = (a * downsample, b * downsample, a * x + b * y + c, d * downsample, e * downsample, d * x + e * y + f)
        return replace(self, transform=moved)

    def extratags(self) -> list[ExtraTag]:
        """The tags for ``tifffile.TiffWriter.write(..., extratags=...)``."""
        a, b, c, d, e, f = self.transform
        if _key(self.keys, _RASTER_TYPE) == 2:  # coordinates of pixel centres
            c, f = c + (a + b) / 2, f + (d + e) / 2
        if b == d == 0 and a > 0 > e:
            scale, tiepoint = (a, -e, 0.0), (0.0, 0.0, 0.0, c, f, 0.0)
            tags: list[ExtraTag] = [(_SCALE, _DOUBLE, 3, scale, True), (_TIEPOINT, _DOUBLE, 6, tiepoint, True)]
        else:
            matrix = (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
            tags = [(_MATRIX, _DOUBLE, 16, matrix, True)]
        if self.keys:
            tags.append((_KEYS, _SHORT, len(self.keys), self.keys, True))
        if self.doubles:
            tags.append((_DOUBLES, _DOUBLE, len(self.doubles), self.doubles, True))
        if self.ascii:
            tags.append((_ASCII, _TEXT, None, self.ascii, True))
        return tags


def georeference_from_tags(value_of: Callable[[int], Any]) -> Georeference | None:
    """Read a GeoTIFF's tags.

    Args:
        value_of: From a tag's number to its value, None where it is missing.

    Returns:
        None without a transform from pixels to the ground (ground control points alone give none).
    """
    keys = tuple(int(value) for value in value_of(_KEYS) or ())
    transform = _transform(value_of(_SCALE), value_of(_TIEPOINT), value_of(_MATRIX))
    if transform is None:
        return None
    if _key(keys, _RASTER_TYPE) == 2:
        a, b, c, d, e, f = transform
        transform = (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2)
    doubles = value_of(_DOUBLES)
    doubles = () if doubles is None else (doubles,) if isinstance(doubles, float) else tuple(doubles)
    return Georeference(transform, _crs(keys), keys, doubles, str(value_of(_ASCII) or ""))


def epsg_keys(code: int, is_geographic: bool) -> tuple[int, ...]:
    """The GeoKeyDirectoryTag of a coordinate system with an EPSG code, in degrees or projected."""
    which = _GEOGRAPHIC if is_geographic else _PROJECTED
    return 1, 1, 0, 3, 1024, 0, 1, 2 if is_geographic else 1, _RASTER_TYPE, 0, 1, 1, which, 0, 1, code


def _transform(scale: Any, tiepoint: Any, matrix: Any) -> tuple[float, float, float, float, float, float] | None:
    if matrix is not None and len(matrix) == 16:
        a, b, c, d, e, f = (float(matrix[index]) for index in (0, 1, 3, 4, 5, 7))
        return a, b, c, d, e, f
    if scale is None or tiepoint is None or len(scale) < 2 or len(tiepoint) < 6:
        return None
    width, height = float(scale[0]), float(scale[1])
    column, row, _, x, y = (float(value) for value in tiepoint[:5])
    return width, 0.0, x - column * width, 0.0, -height, y + row * height


def _key(keys: tuple[int, ...], wanted: int) -> int | None:
    """The short value of a GeoKey: entries of four (key, location, count, value) follow a header of four."""
    for start in range(4, len(keys) - 3, 4):
        if keys[start] == wanted and keys[start + 1] == 0:
            return keys[start + 3]
    return None


def _crs(keys: tuple[int, ...]) -> str | None:
    for wanted in (_PROJECTED, _GEOGRAPHIC):
        code = _key(keys, wanted)
        if code is not None:
            return None if code == _USER_DEFINED else f"EPSG:{code}"
    return None
