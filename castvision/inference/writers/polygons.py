"""Label maps as polygons along pixel edges: exact outlines, with holes, as GeoJSON.

An outline is made of corners. In one row of the grid between pixels a class's corners lie in pairs, each joined by a
horizontal edge; in one column in pairs joined by a vertical edge. Following the two pairings in turn walks around each
outline. Areas that touch at a corner only are two polygons. Where an outline or a hole meets itself at a corner it is
split there, so that no ring touches itself: what an outline closes in becomes a hole, and holes that touch are two.
This is what the standard (simple features) calls valid.

`rasterio.features.shapes` does the same for a whole array in memory; this tracer needs no GDAL, and reads the labels in
bands, so that only their corners are held.
"""

from __future__ import annotations

import json
from bisect import bisect_left, insort
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.inference.writers.outlines import simplify_rings
from castvision.visualization.pictures import cluster_colours

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from castvision.data import Georeference
    from castvision.inference.sinks import FileSink

Array = np.ndarray[Any, np.dtype[Any]]
Ring = np.ndarray[Any, np.dtype[np.int64]]
Transform = tuple[float, float, float, float, float, float]
_IDENTITY: Transform = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
_BAND = 512
_LIMIT = 10_000_000


@dataclass(frozen=True)
class Polygon:
    """One area of one class.

    Attributes:
        outline: (n, 2) corners (x, y) in pixels, not closed.
        holes: Likewise.
    """

    outline: Ring
    holes: tuple[Ring, ...]

    @property
    def area(self) -> int:
        """In pixels."""
        return round(abs(_signed_area(self.outline)) - sum(abs(_signed_area(hole)) for hole in self.holes))


def write_geojson(
    path: Path,
    sink: FileSink,
    names: Sequence[str],
    *,
    left_out: Sequence[int],
    georeference: Georeference | None = None,
    pixel_size: tuple[float, float] = (1.0, 1.0),
    min_area: int = 0,
    simplify: float = 0.0,
) -> int:
    """Write the polygons of all classes.

    Args:
        path: Of the new file.
        sink: (height, width) labels.
        names: One for each class.
        left_out: Labels without polygons: nodata, a background.
        georeference: At the labels' resolution; coordinates are then in its system, named in the member "crs" if it has
            a code, else in pixels of the full image (x to the right, y down), as the member "description" says.
        pixel_size: (width, height) of a label in pixels of the full image.
        min_area: Smaller holes are filled, and count as the area they lie in; then smaller areas are left out. In
            pixels of the labels.
        simplify: Corners closer than this many pixels to a straighter outline are dropped, as long as no rings cross;
            0 = exact. The pixels stated are those before.

    Returns:
        Number of polygons.

    Raises:
        ValueError: More than 10 million corners.
    """
    corners = _collect(sink, set(left_out))
    transform = to_full_image(pixel_size) if georeference is None else georeference.transform
    count = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection"' + told_where(georeference, pixel_size) + ', "features": [')
        for label in sorted(corners):
            for traced in trace(corners.pop(label)):
                polygon = _without_small_holes(traced, min_area)
                if polygon.area >= min_area:
                    rings = simplify_rings([polygon.outline, *polygon.holes], simplify)
                    file.write((",\n" if count else "\n") + _feature(label, names, polygon.area, rings, transform))
                    count += 1
        file.write("\n]}\n")
    return count


def to_full_image(pixel_size: tuple[float, float]) -> Transform:
    """From pixels of the labels to pixels of the full image, of which one spans so many (width, height)."""
    width, height = pixel_size
    return width, 0.0, 0.0, 0.0, height, 0.0


def told_where(georeference: Georeference | None, pixel_size: tuple[float, float]) -> str:
    """Members that say what the coordinates are."""
    if georeference is None:
        width, height = pixel_size
        told = "coordinates are pixels of the full image, x to the right, y down from its upper left corner"
        if pixel_size != (1.0, 1.0):
            told += f"; a pixel of the labels is {width:g} × {height:g} of them"
        return f', "description": {json.dumps(told, ensure_ascii=False)}'
    if georeference.epsg is not None:
        name = f"urn:ogc:def:crs:EPSG::{georeference.epsg}"
        return f', "crs": {json.dumps({"type": "name", "properties": {"name": name}})}'
    told = "coordinates are on the ground, in a coordinate system "
    told += "without a code, see the .wkt file beside this one" if georeference.has_crs else "the image does not name"
    return f', "description": {json.dumps(told)}'


def _without_small_holes(polygon: Polygon, min_area: int) -> Polygon:
    return replace(polygon, holes=tuple(hole for hole in polygon.holes if abs(_signed_area(hole)) >= min_area))


def _feature(label: int, names: Sequence[str], pixels: int, rings: Sequence[Array], transform: Transform) -> str:
    name = names[label] if label < len(names) else str(label)
    coordinates = [closed_ring(ring, index == 0, transform) for index, ring in enumerate(rings)]
    colour = [int(value) for value in cluster_colours(label + 1)[label]]
    properties = {
        "class": label,
        "name": name,
        "pixels": pixels,
        "classification": {"name": name, "color": colour},  # as QuPath reads it
    }
    geometry = {"type": "Polygon", "coordinates": coordinates}
    return json.dumps({"type": "Feature", "properties": properties, "geometry": geometry}, ensure_ascii=False)


def closed_ring(ring: Array, is_outline: bool, transform: Transform) -> list[list[float]]:
    """Coordinates, outlines counter-clockwise and holes clockwise as the standard asks."""
    points: list[list[float]] = ring.tolist()
    if transform != _IDENTITY:
        a, b, c, d, e, f = transform
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
    exchanged = _exchanged_where_rings_touch_themselves(y, x, ring_of)
    if exchanged is not None:
        along = exchanged[along[exchanged]]
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
        yield Polygon(ring(number), tuple(ring(hole) for hole in holes[number]))


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


def _exchanged_where_rings_touch_themselves(y: Array, x: Array, ring_of: Array) -> Array | None:
    """For each corner itself, but the other of the two where one ring passes through both; None = there are none.

    Exchanging the vertical edges of such two corners splits the ring there. Corners of one place follow each other.
    """
    is_twin = (y[1:] == y[:-1]) & (x[1:] == x[:-1]) & (ring_of[1:] == ring_of[:-1])
    lower = np.flatnonzero(is_twin)
    if len(lower) == 0:
        return None
    exchanged = np.arange(len(y))
    exchanged[lower], exchanged[lower + 1] = lower + 1, lower
    return exchanged


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
