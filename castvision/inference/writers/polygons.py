"""Label maps as polygons along pixel edges: exact outlines, with holes, as GeoJSON.

An outline is made of corners. In one row of the grid between pixels a class's corners lie in pairs, each joined by a
horizontal edge; in one column in pairs joined by a vertical edge. Following the two pairings in turn walks around each
outline. Areas that touch at a corner only are two polygons.

`rasterio.features.shapes` does the same for a whole array in memory; this tracer needs no GDAL, and reads the labels in
bands, so that only their corners are held.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.visualization.pictures import cluster_colours

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from castvision.data import Georeference
    from castvision.inference.sinks import FileSink

Array = np.ndarray[Any, np.dtype[Any]]
Ring = np.ndarray[Any, np.dtype[np.int64]]
_BAND = 512
_LIMIT = 10_000_000


@dataclass(frozen=True)
class Polygon:
    """One area of one class.

    Attributes:
        outline: (n, 2) corners (x, y) in pixels, not closed.
        holes: Likewise.
        area: In pixels.
    """

    outline: Ring
    holes: tuple[Ring, ...]
    area: int


def write_geojson(
    path: Path,
    sink: FileSink,
    names: Sequence[str],
    *,
    left_out: Sequence[int],
    georeference: Georeference | None = None,
    min_area: int = 0,
    simplify: float = 0.0,
) -> int:
    """Write the polygons of all classes.

    Args:
        path: Of the new file.
        sink: (height, width) labels.
        names: One for each class.
        left_out: Labels without polygons: nodata, a background.
        georeference: At the labels' resolution; coordinates are then in its system, named in the member "crs", else in
            pixels (x to the right, y down).
        min_area: Smaller areas and holes are left out, in pixels.
        simplify: Corners closer than this many pixels to a straighter outline are dropped; 0 = exact.

    Returns:
        Number of polygons.

    Raises:
        ValueError: More than 10 million corners.
    """
    corners = _collect(sink, set(left_out))
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection"' + _crs(georeference) + ', "features": [')
        for label in sorted(corners):
            for polygon in trace(corners.pop(label)):
                rings = _kept_rings(polygon, min_area, simplify)
                if rings:
                    file.write((",\n" if count else "\n") + _feature(label, names, polygon, rings, georeference))
                    count += 1
        file.write("\n]}\n")
    return count


def _crs(georeference: Georeference | None) -> str:
    crs = None if georeference is None else georeference.crs
    if crs is None:
        return ""
    name = f"urn:ogc:def:crs:EPSG::{crs[5:]}" if crs.startswith("EPSG:") else crs
    return f', "crs": {json.dumps({"type": "name", "properties": {"name": name}})}'


def _kept_rings(polygon: Polygon, min_area: int, simplify: float) -> list[Ring]:
    if polygon.area < min_area:
        return []
    kept = [polygon.outline, *(hole for hole in polygon.holes if abs(_signed_area(hole)) >= min_area)]
    if simplify <= 0:
        return kept
    import cv2

    simple = [cv2.approxPolyDP(ring.astype(np.int32)[:, None], simplify, closed=True)[:, 0] for ring in kept]
    return [ring.astype(np.int64) for ring in simple if len(ring) >= 3] if len(simple[0]) >= 3 else []


def _feature(
    label: int, names: Sequence[str], polygon: Polygon, rings: list[Ring], georeference: Georeference | None
) -> str:
    name = names[label] if label < len(names) else str(label)
    coordinates = [_closed(ring, index == 0, georeference) for index, ring in enumerate(rings)]
    colour = [int(value) for value in cluster_colours(label + 1)[label]]
    properties = {
        "class": label,
        "name": name,
        "pixels": polygon.area,
        "classification": {"name": name, "color": colour},  # as QuPath reads it
    }
    geometry = {"type": "Polygon", "coordinates": coordinates}
    return json.dumps({"type": "Feature", "properties": properties, "geometry": geometry}, ensure_ascii=False)


def _closed(ring: Ring, is_outline: bool, georeference: Georeference | None) -> list[list[float]]:
    """Coordinates, outlines counter-clockwise and holes clockwise as the standard asks."""
    points: list[list[float]] = ring.tolist()
    if georeference is not None:
        a, b, c, d, e, f = georeference.transform
        points = [[a * x + b * y + c, d * x + e * y + f] for x, y in points]
    if (_signed_area(np.asarray(points, np.float64)) > 0) != is_outline:
        points.reverse()
    return [*points, points[0]]


def _signed_area(ring: Array) -> float:
    x, y = (ring - ring[0]).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()) / 2


def _collect(sink: FileSink, left_out: set[int]) -> dict[int, Array]:
    """For each label its corners (n, 5): y, x, goes right, goes down, whether the pixel to the lower right is inside.

    Sorted by y, x, left before right.
    """
    height, width = sink.shape[:2]
    found: dict[int, list[Array]] = defaultdict(list)
    total = 0
    last = np.full((1, width + 2), -1, np.int32)
    for y in range(0, height, _BAND):
        band = np.pad(sink.read(y, 0, _BAND, width).astype(np.int32), ((0, 0), (1, 1)), constant_values=-1)
        band = np.concatenate([last, band])
        last = band[-1:]
        if y + _BAND >= height:
            band = np.concatenate([band, np.full_like(last, -1)])
        for label in np.unique(band):
            if label >= 0 and int(label) not in left_out:
                corners = corners_of(band == label, y)
                total += len(corners)
                found[int(label)].append(corners)
        if total > _LIMIT:
            raise ValueError(f"the label map has more than {_LIMIT:,} corners, too ragged for polygons; leave them out")
    return {label: np.concatenate(parts) for label, parts in found.items()}


def corners_of(mask: Array, first_row: int) -> Array:
    """Corners between the rows of a mask.

    Args:
        mask: (height + 1, width + 1) bool; corner (y, x) lies between the pixels [y, x] to [y + 1, x + 1].
        first_row: Row of the first corners.

    Returns:
        (n, 5) int32, see `_collect`.
    """
    a, b, c, d = mask[:-1, :-1], mask[:-1, 1:], mask[1:, :-1], mask[1:, 1:]
    is_corner = (a ^ b ^ c ^ d) | ((a == d) & (b == c) & (a != b))
    y, x = np.nonzero(is_corner)
    b, c, d, is_saddle = b[y, x], c[y, x], d[y, x], ~(a ^ b ^ c ^ d)[y, x]
    twice = 1 + is_saddle  # where two areas touch there are two corners: one goes left, one right
    b, c, d, is_saddle = (part.repeat(twice) for part in (b, c, d, is_saddle))
    y, x = y.repeat(twice), x.repeat(twice)
    goes_right, goes_down = b != d, c != d
    second = np.zeros_like(is_saddle)
    second[1:] = is_saddle[1:] & is_saddle[:-1] & (y[1:] == y[:-1]) & (x[1:] == x[:-1])
    goes_right[is_saddle] = second[is_saddle]
    goes_down[is_saddle] = (second == d)[is_saddle]
    return np.stack([y + first_row, x, goes_right, goes_down, d], axis=1).astype(np.int32)


def trace(corners: Array) -> Iterator[Polygon]:
    """Walk around one class's outlines.

    Args:
        corners: (n, 5), see `_collect`.

    Yields:
        Its polygons, by their first corner.
    """
    y, x, goes_right, goes_down, inside = corners.T
    across = _partners(np.lexsort((goes_right, x, y)))
    along = _partners(np.lexsort((goes_down, y, x)))
    order, bounds, ring_of = _walk(across, along)
    first = order[bounds[:-1]]
    is_outline = inside[first] > 0
    holes: dict[int, list[int]] = defaultdict(list)
    for hole, parent in _parents(first, is_outline, (y, x, along, ring_of)).items():
        holes[parent].append(hole)

    def ring(number: int) -> Ring:
        met = order[bounds[number] : bounds[number + 1]]
        return np.stack([x[met], y[met]], axis=1).astype(np.int64)

    for number in np.flatnonzero(is_outline).tolist():
        outline, inner = ring(number), tuple(ring(hole) for hole in holes[number])
        area = abs(_signed_area(outline)) - sum(abs(_signed_area(hole)) for hole in inner)
        yield Polygon(outline, inner, round(area))


def _partners(order: Array) -> Array:
    partners = np.empty_like(order)
    partners[order[0::2]], partners[order[1::2]] = order[1::2], order[0::2]
    return partners


def _walk(across: Array, along: Array) -> tuple[Array, list[int], Array]:
    """Go around every ring, from its upper left corner on.

    Returns:
        The corners in the order they are met, the bounds of each ring in it, and the ring of each corner.
    """
    order, ring_of = np.empty(len(across), np.int64), np.full(len(across), -1, np.int32)
    # NOTE: memoryviews, since lists of millions of numbers take ten times the memory and arrays ten times the time
    beside_of, below_of, met, owner = (array.data for array in (across, along, order, ring_of))
    bounds, end = [0], 0
    for start in range(len(across)):
        if owner[start] >= 0:
            continue
        here, number = start, len(bounds) - 1
        while owner[here] < 0:
            beside = beside_of[here]
            met[end], met[end + 1] = here, beside
            owner[here] = owner[beside] = number
            end += 2
            here = below_of[beside]
        bounds.append(end)
    return order, bounds, ring_of


def _parents(first: Array, is_outline: Array, edges: tuple[Array, Array, Array, Array]) -> dict[int, int]:
    """For each hole the outline around it: that of the edge to its left, or of the hole this edge belongs to."""
    y, x, along, ring_of = edges
    parents: dict[int, int] = {}
    if is_outline.all():
        return parents
    upper = np.flatnonzero(y < y[along])  # the upper ends of vertical edges
    rows = np.concatenate([y[along[upper]], y[upper]])  # where edges end, then where edges begin
    events = np.argsort(rows, kind="stable")
    where, owners = np.tile(x[upper], 2), np.tile(ring_of[upper], 2)
    active: list[int] = []
    ring_at: dict[int, int] = {}
    done = 0
    holes = np.flatnonzero(~is_outline)  # by their first corner, row by row
    reached = np.searchsorted(rows[events], y[first[holes]], side="right")
    for number, col, until in zip(holes.tolist(), x[first[holes]].tolist(), reached.tolist(), strict=True):
        for event in events[done:until].tolist():
            edge = int(where[event])
            if event < len(upper):
                del active[bisect_left(active, edge)]
            else:
                insort(active, edge)
                ring_at[edge] = int(owners[event])
        done = until
        left = ring_at[active[bisect_left(active, col) - 1]]
        parents[number] = left if is_outline[left] else parents[left]
    return parents
