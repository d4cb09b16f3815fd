"""Features of vector files: GeoJSON by itself, GeoPackage, shapefile and others through the extra ``vector``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.reading.folders import nfc
from castvision.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Points = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, eq=False)
class Feature:
    """One polygon or one point.

    Attributes:
        value: Of the attribute that was asked for, as text.
        rings: Outline and holes, (n, 2) of x and y each; of a point one ring of one point.
    """

    value: str
    rings: tuple[Points, ...]


def read_features(path: Path, attribute: str, layer: str | None = None) -> tuple[list[Feature], str | None]:
    """Read polygons and points with an attribute.

    Args:
        path: ``.geojson`` or ``.json``, or with the extra ``vector`` anything GDAL reads.
        attribute: Whose values are read.
        layer: Of a file of several; None = the only one.

    Returns:
        Features, several of a multipart one, and the coordinate system the file states: a code such as "EPSG:4326", or
        WKT. None = not stated.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another file, no such attribute, a feature without a value, or other geometries.
        ImportError: A format of the extra, which is not installed.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file of labels: {str(path)!r}; check the path")
    is_json = path.suffix.lower() in (".geojson", ".json")
    entries, crs = _read_geojson(path) if is_json else _read_other(path, layer)
    features = []
    for number, (geometry, properties) in enumerate(entries):
        where = f"{path}, feature {number}"
        if attribute not in properties:
            raise ValueError(f"{where}: expected the attribute {attribute!r}, got {', '.join(properties) or 'none'}")
        value = properties[attribute]
        if value is None or str(value).strip() in ("", "nan"):
            raise ValueError(f"{where}: expected a value of {attribute!r}, got none; fill it in, or delete the feature")
        text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
        features += [Feature(nfc(text), rings) for rings in _parts(geometry, where)]
    if not features:
        raise ValueError(f"expected polygons or points in {str(path)!r}, found none")
    return features, crs


def _read_geojson(path: Path) -> tuple[list[tuple[Any, Mapping[str, Any]]], str | None]:
    content = read_json(path)
    listed = content.get("features") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise ValueError(f"expected a FeatureCollection in {str(path)!r}, got another; export the layer as GeoJSON")
    entries = [(one.get("geometry"), one.get("properties") or {}) for one in listed]
    name = ((content.get("crs") or {}).get("properties") or {}).get("name")
    if name is None:
        return entries, None
    authority, _, code = str(name).upper().removeprefix("URN:OGC:DEF:CRS:").replace("::", ":").partition(":")
    if code.endswith("CRS84"):
        return entries, "EPSG:4326"
    if authority != "EPSG" or not code.rpartition(":")[2].isdecimal():
        raise ValueError(
            f"expected an EPSG code in the member 'crs' of {str(path)!r}, got {name!r}; say crs: EPSG:CODE"
        )
    return entries, f"EPSG:{code.rpartition(':')[2]}"


def _read_other(path: Path, layer: str | None) -> tuple[list[tuple[Any, Mapping[str, Any]]], str | None]:
    try:
        import pyogrio
        import shapely
    except ImportError:
        raise ImportError(
            f"reading {str(path)!r} needs pyogrio and shapely: pip install 'castvision[vector]'; or export GeoJSON"
        ) from None
    try:
        layers = [str(name) for name in pyogrio.list_layers(path)[:, 0]]
        if (layer is None and len(layers) != 1) or (layer is not None and layer not in layers):
            raise ValueError(f"expected one layer of {', '.join(layers)} in {str(path)!r}, got {layer=}")
        about, _, shapes, columns = pyogrio.raw.read(path, layer=layer or layers[0])
    except pyogrio.errors.DataSourceError as error:
        raise ValueError(f"expected vectors in {str(path)!r}: {error}") from error
    geometries = [None if one is None else shapely.geometry.mapping(one) for one in shapely.from_wkb(shapes)]
    table = [[one.item() if hasattr(one, "item") else one for one in column] for column in columns]
    rows = zip(*table, strict=True) if table else ([] for _ in geometries)
    fields = [str(name) for name in about["fields"]]
    return [(one, dict(zip(fields, row, strict=True))) for one, row in zip(geometries, rows, strict=True)], about["crs"]


def _parts(geometry: Any, where: str) -> list[tuple[Points, ...]]:
    """Rings of each polygon, or a point."""
    if geometry is None:
        return []
    kind, coordinates = geometry.get("type"), geometry.get("coordinates")
    if kind == "GeometryCollection":
        return [part for one in geometry["geometries"] for part in _parts(one, where)]
    nested = {"Point": [[[coordinates]]], "Polygon": [coordinates], "MultiPolygon": coordinates}
    nested["MultiPoint"] = [[[point]] for point in coordinates or ()] if kind == "MultiPoint" else None
    if nested.get(kind) is None:
        raise ValueError(f"{where}: expected polygons or points, got a {kind}; give it a width (buffer) first")
    found = []
    for polygon in nested[kind]:
        rings = tuple(np.array([point[:2] for point in ring], np.float64).reshape(-1, 2) for ring in polygon)
        if not rings or not all(map(np.size, rings)) or not all(np.isfinite(ring).all() for ring in rings):
            raise ValueError(f"{where}: expected rings of finite x and y, got {str(polygon)[:60]}")
        found.append(rings)
    return found


def is_beyond_degrees(features: Sequence[Feature]) -> bool:
    """Whether coordinates are too large for longitudes and latitudes."""
    return any((np.abs(ring).max(axis=0) > (180.001, 90.001)).any() for one in features for ring in one.rings)


def moved(features: Sequence[Feature], source: str, target: str) -> list[Feature]:
    """Features in another coordinate system.

    Args:
        features: In ``source``.
        source: A code or WKT.
        target: Likewise.

    Raises:
        ImportError: They differ, and rasterio is not installed.
        ValueError: A system that is none, or places it has no coordinates for.
    """
    if source == target:
        return list(features)
    try:
        from rasterio.crs import CRS
        from rasterio.errors import RasterioError
        from rasterio.warp import transform
    except ImportError:
        raise ImportError(
            f"moving labels from {source[:40]} to {target[:40]} needs rasterio: pip install 'castvision[vector]'; or "
            "export them in the images' coordinate system"
        ) from None
    try:
        old, new = CRS.from_user_input(source), CRS.from_user_input(target)
        if old == new:
            return list(features)
        flat = np.concatenate([ring for one in features for ring in one.rings])
        columns = transform(old, new, flat[:, 0].tolist(), flat[:, 1].tolist())
    except (RasterioError, ValueError) as error:
        raise ValueError(f"cannot move labels from {source[:60]} to {target[:60]}: {error}") from error
    if not all(map(math.isfinite, (value for column in columns for value in column))):
        raise ValueError(
            f"labels in {source[:60]} have places without coordinates in {target[:60]}; check their system"
        )
    places = np.column_stack(columns[:2])
    result, start = [], 0
    for one in features:
        rings = []
        for ring in one.rings:
            rings.append(places[start : start + len(ring)])
            start += len(ring)
        result.append(Feature(one.value, tuple(rings)))
    return result
