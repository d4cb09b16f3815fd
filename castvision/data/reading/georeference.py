"""Where an image lies on the ground: by a GeoTIFF's tags, or a world file or GDAL's .aux.xml beside the image.

Read and written back without a GIS library; rasterio, where it is installed, only translates coordinate systems that
have no code between WKT and a GeoTIFF's keys.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.pam import is_there, not_of_gdal, pam_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SCALE, _TIEPOINT, _MATRIX = 33550, 33922, 34264
_KEYS, _DOUBLES, _ASCII = 34735, 34736, 34737
_MODEL_TYPE, _RASTER_TYPE, _GEOGRAPHIC, _PROJECTED = 1024, 1025, 2048, 3072
_LINEAR_UNIT = 3076
_USER_DEFINED = 32767
_FEET = {9002: "feet", 9003: "US survey feet", 0.3048: "feet", 0.3048006: "US survey feet"}
_WEB_MERCATOR = (3857, 3785, 900913, 102100, 102113)
_NO_TRANSFORM = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_SHORT, _TEXT, _DOUBLE = 3, 2, 12

ExtraTag = tuple[int, int, int | None, Any, bool]
Transform = tuple[float, float, float, float, float, float]


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

    transform: Transform
    crs: str | None = None
    keys: tuple[int, ...] = ()
    doubles: tuple[float, ...] = ()
    ascii: str = ""

    @property
    def pixel_size(self) -> float:
        """Ground units along a step of one column."""
        return self.pixel_sizes[0]

    @property
    def pixel_sizes(self) -> tuple[float, float]:
        """Ground units along a step of one column, and of one row."""
        a, b, _, d, e, _ = self.transform
        return (a**2 + d**2) ** 0.5, (b**2 + e**2) ** 0.5

    @property
    def pixel_area(self) -> float:
        """Of a pixel, in square ground units (square degrees, where they are degrees)."""
        a, b, _, d, e, _ = self.transform
        return abs(a * e - b * d)

    @property
    def is_in_degrees(self) -> bool:
        """Whether ground units are degrees, which no length in metres or microns may be compared with."""
        if _key(self.keys, _MODEL_TYPE) is not None:
            return _key(self.keys, _MODEL_TYPE) == 2
        system = (self.crs or "").upper()
        return system.startswith("EPSG:4326") or (
            "PROJC" not in system and any(word in system for word in ("GEOGCS[", "GEOGCRS[", "GEODCRS["))
        )

    @property
    def unit(self) -> str:
        """What coordinates are in: "degrees", feet by name, "ground units" for metres and where nothing is said.

        Web Mercator's metres are those of the equator: at 60 degrees north two of them are one on the ground.
        """
        if self.is_in_degrees:
            return "degrees"
        if self.epsg in _WEB_MERCATOR or "Pseudo-Mercator" in (self.crs or ""):
            return "Web Mercator units"
        code: float | None = _key(self.keys, _LINEAR_UNIT)
        if code is None:
            lengths = re.findall(r'UNIT\["[^"]*",\s*([0-9.]+)', (self.crs or "").split("VERT")[0])
            code = round(float(lengths[-1]), 7) if lengths else None  # in metres; the last is that of x and y
        return "ground units" if code is None else _FEET.get(code, "ground units")

    @property
    def epsg(self) -> int | None:
        """The code of the (horizontal) coordinate system; None if it has none or is not known."""
        found = re.fullmatch(r"EPSG:(\d+)", _crs(self.keys) or self.crs or "")
        return None if found is None else int(found[1])

    @property
    def has_crs(self) -> bool:
        """Whether a coordinate system is stated, with or without a code."""
        return self.crs is not None or _key_exists(self.keys, (_PROJECTED, _GEOGRAPHIC))

    def to_wkt(self) -> str | None:
        """The coordinate system as WKT; None without one, or where it takes rasterio, which is not installed."""
        if self.crs is not None and not self.crs.startswith("EPSG:"):
            return self.crs
        return _wkt_of_tags(self.extratags()) if self.has_crs else None

    def of_window(self, y: float, x: float, downsample: float | tuple[float, float] = 1.0) -> Georeference:
        """The georeference of a window or a level.

        Args:
            y: Its first row, in pixels of this image.
            x: Its first column, in pixels of this image.
            downsample: How many of this image's pixels one of its pixels spans; of a pair, down and across.
        """
        down, across = downsample if isinstance(downsample, tuple) else (downsample, downsample)
        a, b, c, d, e, f = self.transform
        moved = (a * across, b * down, a * x + b * y + c, d * across, e * down, d * x + e * y + f)
        return replace(self, transform=moved)

    def of_turned(self, orientation: int, height: int, width: int) -> Georeference:
        """The georeference of the image as it is shown, where this is of its pixels as they are stored.

        Args:
            orientation: Of EXIF and TIFF, 1..8; see `castvision.data.reading.pixels.orient`.
            height: As stored.
            width: As stored.
        """
        a, b, c, d, e, f = self.transform
        if orientation in (3, 4, 6, 7):  # the last stored row comes first, or becomes the first column
            b, c, e, f = -b, c + b * height, -e, f + e * height
        if orientation in (2, 3, 7, 8):  # so does the last stored column
            a, c, d, f = -a, c + a * width, -d, f + d * width
        if orientation >= 5:
            a, b, d, e = b, a, e, d
        return replace(self, transform=(a, b, c, d, e, f))

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


def georeference_from_tags(value_of: Callable[[int], Any], path: Path | None = None) -> Georeference | None:
    """Read a GeoTIFF's tags, and what lies beside it where they say nothing.

    As GDAL does, an .aux.xml goes before the tags and these before a world file; each of transform and coordinate
    system is taken from the first that states it.

    Args:
        value_of: From a tag's number to its value, None where it is missing.
        path: Of the file; None = its tags alone.

    Returns:
        None without a transform from pixels to the ground (ground control points alone give none).

    Raises:
        ValueError: A file beside it that cannot be read.
    """
    keys = tuple(int(value) for value in value_of(_KEYS) or ())
    transform = _transform(value_of(_SCALE), value_of(_TIEPOINT), value_of(_MATRIX))
    if transform is not None and _key(keys, _RASTER_TYPE) == 2:
        a, b, c, d, e, f = transform
        transform = (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2)
    doubles = value_of(_DOUBLES)
    doubles = () if doubles is None else (doubles,) if isinstance(doubles, float) else tuple(doubles)
    inside = Georeference(transform or _NO_TRANSFORM, _crs(keys), keys, doubles, str(value_of(_ASCII) or ""))
    written, wkt = (None, None) if path is None else _read_pam(path)
    transform = written or transform or (None if path is None else _read_world_file(path))
    if transform is None:
        return None
    return replace(inside, transform=transform) if wkt is None else georeference_of(transform, wkt)


def georeference_beside(path: Path) -> Georeference | None:
    """What an .aux.xml or a world file beside an image without tags says of it.

    Args:
        path: Of the image.

    Returns:
        None without a transform.

    Raises:
        ValueError: A file beside it that cannot be read.
    """
    return georeference_from_tags(lambda tag: None, path)


def georeference_of(transform: Transform, wkt: str) -> Georeference:
    """A georeference by WKT, with the keys to write it into a GeoTIFF, if it has a code or rasterio is installed."""
    found = re.search(r'(?:AUTHORITY|ID)\["EPSG",\s*"?(\d+)"?\]\s*\]\s*$', wkt)
    place = Georeference(transform, wkt)
    if found is not None and not wkt.startswith("COMP"):
        return replace(place, keys=epsg_keys(int(found[1]), place.is_in_degrees))
    keys, doubles, text = _tags_of_wkt(wkt)
    return replace(place, keys=keys, doubles=doubles, ascii=text)


def epsg_keys(code: int, is_geographic: bool) -> tuple[int, ...]:
    """The GeoKeyDirectoryTag of a coordinate system with an EPSG code, in degrees or projected."""
    which = _GEOGRAPHIC if is_geographic else _PROJECTED
    return 1, 1, 0, 3, 1024, 0, 1, 2 if is_geographic else 1, _RASTER_TYPE, 0, 1, 1, which, 0, 1, code


# Beside the image


def _read_world_file(path: Path) -> Transform | None:
    """Six lines: a, d, b, e and the middle of the first pixel. ``.tfw`` or ``.tifw`` of ``.tif``, or ``.wld``."""
    suffix = path.suffix[1:]
    names = [f"{suffix[:1]}{suffix[-1:]}w", f"{suffix}w", "wld"] if suffix else ["wld"]
    for name in dict.fromkeys(spelled for short in names for spelled in (short, short.lower(), short.upper())):
        file = path.with_suffix(f".{name}")
        if is_there(file) and file != path:
            try:
                a, d, b, e, x, y = (float(text) for text in file.read_text("utf-8", "replace").split())
                _check_transform(transform := (a, b, x - (a + b) / 2, d, e, y - (d + e) / 2))
            except ValueError as error:
                raise ValueError(
                    f"expected six numbers of a world file in {file.name!r}, got others ({error}); correct or remove it"
                ) from None
            return transform
    return None


def _read_pam(path: Path) -> tuple[Transform | None, str | None]:
    """Transform and WKT of GDAL's .aux.xml, where it states them."""
    root = pam_of(path)
    if root is None:
        return None, None
    transform, text = None, root.findtext("GeoTransform")
    if text is not None:
        try:
            c, a, b, f, d, e = (float(number) for number in text.split(","))
            _check_transform(transform := (a, b, c, d, e, f))
        except ValueError as error:
            raise not_of_gdal(f"{path.name}.aux.xml", error) from None
    return transform, (root.findtext("SRS") or "").strip() or None


def _check_transform(transform: Transform) -> None:
    a, b, _, d, e, _ = transform
    if not all(map(math.isfinite, transform)) or a * e - b * d == 0:
        raise ValueError("pixels would have no area")


# GeoTIFF


def _transform(scale: Any, tiepoint: Any, matrix: Any) -> Transform | None:
    """By scale and tiepoint, else by the matrix, as GDAL goes; None where neither gives pixels an area."""
    if scale is None or tiepoint is None or len(scale) < 2 or len(tiepoint) < 6 or 0 in scale[:2]:
        if matrix is None or len(matrix) != 16:
            return None
        a, b, c, d, e, f = (float(matrix[index]) for index in (0, 1, 3, 4, 5, 7))
        return None if a * e == b * d else (a, b, c, d, e, f)
    width, height = float(scale[0]), abs(float(scale[1]))  # below 0 it is a slip of the writer: GDAL takes it so
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


def _key_exists(keys: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return any(keys[start] in wanted for start in range(4, len(keys) - 3, 4))


def _wkt_of_tags(tags: list[ExtraTag]) -> str | None:
    """Through rasterio."""
    import tifffile

    try:
        from rasterio.io import MemoryFile
    except ImportError:
        return None
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.zeros((1, 1), np.uint8), extratags=tags, metadata=None)
    with MemoryFile(stream.getvalue()) as file, file.open() as dataset:
        return None if dataset.crs is None else dataset.crs.to_wkt() or None


def _tags_of_wkt(wkt: str) -> tuple[tuple[int, ...], tuple[float, ...], str]:
    """Keys, doubles and text of a GeoTIFF, through rasterio; empty without it."""
    import tifffile

    try:
        from rasterio.crs import CRS
        from rasterio.errors import CRSError, NotGeoreferencedWarning
        from rasterio.io import MemoryFile
    except ImportError:
        return (), (), ""
    try:
        crs = CRS.from_wkt(wkt)
    except CRSError:
        return (), (), ""
    with warnings.catch_warnings(), MemoryFile() as file:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with file.open(driver="GTiff", height=1, width=1, count=1, dtype="uint8", crs=crs) as dataset:
            dataset.write(np.zeros((1, 1, 1), np.uint8))
        with tifffile.TiffFile(io.BytesIO(file.read())) as tiff:
            written = georeference_from_tags(lambda tag: _with_a_place(tag, tiff.pages[0].aspage().tags.valueof(tag)))
    return ((), (), "") if written is None else (written.keys, written.doubles, written.ascii)


def _with_a_place(tag: int, value: Any) -> Any:
    """A tag's value, and some transform."""
    return {_SCALE: (1.0, 1.0, 0.0), _TIEPOINT: (0.0,) * 6}.get(tag, value)
