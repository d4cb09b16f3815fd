"""Single objects as COCO JSON, GeoJSON and a table; their map is a TIFF like the masks' (`raster.write_tiff`)."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.inference.writers.outlines import simplify_rings
from castvision.inference.writers.polygons import closed_ring, corners_of, to_full_image, told_where, trace
from castvision.visualization.pictures import cluster_colours

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from castvision.data import Georeference
    from castvision.inference.instances.table import Array, Instances, Transform

COCO_PIXELS = 1 << 32
"""Run lengths of COCO are numbers of 32 bits."""


@dataclass(frozen=True)
class Ground:
    """What a pixel of the map is on the ground, or in a slide.

    Attributes:
        transform: From pixels to units, see `castvision.data.Georeference`.
        unit: That of the coordinate system, see `castvision.data.Georeference.unit`, or "microns".
    """

    transform: Transform
    unit: str


def ground_of(georeference: Georeference | None, mpp: tuple[float, float] | None) -> Ground | None:
    """The units of an image.

    Args:
        georeference: At the map's resolution.
        mpp: Microns per pixel of the map, across and down; counted from the image's upper left corner.

    Returns:
        None where the image states neither.
    """
    if georeference is not None:
        return Ground(georeference.transform, georeference.unit)
    return None if mpp is None else Ground((mpp[0], 0.0, 0.0, 0.0, mpp[1], 0.0), "microns")


def write_table(path: Path, found: Instances, names: Sequence[str], ground: Ground | None) -> None:
    """One line for each object; the header alone where there are none.

    ``instance``, ``class``, ``name``, ``score`` (if there are any); in pixels of the map, from its upper left corner:
    ``pixels`` (the area), ``perimeter_pixels``, the centroid ``x``, ``y``, the box ``left``, ``top``, ``right``,
    ``bottom``. Where the image states units: ``area``, ``perimeter``, the centroid ``ground_x``, ``ground_y``, the box
    ``ground_x_min``, … in them, and ``unit``. See `Shapes.perimeters` for how perimeters are measured.

    Args:
        path: Of the new file.
        found: The objects.
        names: Of the classes.
        ground: The image's units.
    """
    columns: dict[str, Iterable[Any]] = {
        "instance": range(1, len(found) + 1),
        "class": found.classes[1:].tolist(),
        "name": (names[label] for label in found.classes[1:].tolist()),
    }
    if found.scores is not None:
        columns["score"] = _short(found.scores[1:])
    y, x = found.shapes.centres[1:].T
    columns |= {
        "pixels": found.shapes.pixels[1:].tolist(),
        "perimeter_pixels": _short(found.shapes.perimeters()[1:]),
        "x": _short(x),
        "y": _short(y),
    }
    boxes = found.shapes.boxes[1:]
    columns |= {
        side: boxes[:, index].tolist() for side, index in (("left", 1), ("top", 0), ("right", 3), ("bottom", 2))
    }
    if ground is not None:
        columns |= _on_the_ground(found, ground)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _on_the_ground(found: Instances, ground: Ground) -> dict[str, Iterable[Any]]:
    a, b, c, d, e, f = ground.transform
    y, x = found.shapes.centres[1:].T
    top, left, bottom, right = found.shapes.boxes[1:].T
    corners_x = np.stack([a * across + b * down + c for across in (left, right) for down in (top, bottom)])
    corners_y = np.stack([d * across + e * down + f for across in (left, right) for down in (top, bottom)])
    return {
        "area": _short(found.shapes.pixels[1:] * abs(a * e - b * d)),
        "perimeter": _short(found.shapes.perimeters(ground.transform)[1:]),
        "ground_x": _exact(a * x + b * y + c),
        "ground_y": _exact(d * x + e * y + f),
        "ground_x_min": _exact(corners_x.min(axis=0)),
        "ground_y_min": _exact(corners_y.min(axis=0)),
        "ground_x_max": _exact(corners_x.max(axis=0)),
        "ground_y_max": _exact(corners_y.max(axis=0)),
        "unit": [ground.unit] * len(found),
    }


def _short(values: Array) -> list[str]:
    return [f"{value:.6g}" for value in values.tolist()]


def _exact(values: Array) -> list[str]:
    """Coordinates may have seven digits before the point."""
    return [f"{value:.12g}" for value in values.tolist()]


def write_instance_geojson(
    path: Path,
    found: Instances,
    names: Sequence[str],
    *,
    georeference: Georeference | None = None,
    pixel_size: tuple[float, float] = (1.0, 1.0),
    simplify: float = 0.0,
) -> None:
    """One feature for each object: a Polygon along pixel edges with its holes, or a MultiPolygon of several.

    Args:
        path: Of the new file.
        found: The objects.
        names: Of the classes.
        georeference: See `castvision.inference.writers.polygons.write_geojson`, also for the coordinates.
        pixel_size: See there.
        simplify: See there.
    """
    transform = to_full_image(pixel_size) if georeference is None else georeference.transform
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection"' + told_where(georeference, pixel_size) + ', "features": [')
        for number, corner, mask in found.masks():
            polygons = [
                [closed_ring(ring, index == 0, transform) for index, ring in enumerate(rings)]
                for rings in _rings(mask, corner, simplify)
            ]
            is_one = len(polygons) == 1
            geometry = {
                "type": "Polygon" if is_one else "MultiPolygon",
                "coordinates": polygons[0] if is_one else polygons,
            }
            feature = {"type": "Feature", "properties": _properties(found, number, names), "geometry": geometry}
            file.write((",\n" if number > 1 else "\n") + json.dumps(feature, ensure_ascii=False))
        file.write("\n]}\n")


def _rings(mask: Array, corner: tuple[int, int], simplify: float) -> Iterator[list[Array]]:
    """The rings of each polygon of an object, (n, 2) corners (x, y) in pixels of the map."""
    top, left = corner
    for polygon in trace(corners_of(np.pad(mask, 1), 0)):
        yield [ring + np.array([left, top]) for ring in simplify_rings([polygon.outline, *polygon.holes], simplify)]


def _properties(found: Instances, number: int, names: Sequence[str]) -> dict[str, Any]:
    label = int(found.classes[number])
    score = {} if found.scores is None else {"score": round(float(found.scores[number]), 6)}
    colour = [int(value) for value in cluster_colours(label + 1)[label]]
    return {
        "instance": number,
        "class": label,
        "name": names[label],
        **score,
        "pixels": int(found.shapes.pixels[number]),
        "objectType": "detection",  # with the next, as QuPath reads it
        "classification": {"name": names[label], "color": colour},
    }


def write_coco(path: Path, found: Instances, names: Sequence[str], file_name: str, things: Sequence[int]) -> None:
    """A data set of one image in the format of COCO: compressed run lengths, areas, boxes and scores if there are any.

    ``category_id`` is the number of the class. The annotations alone, without "bbox", are what
    ``COCO.loadRes`` takes as results, if there are scores.

    Args:
        path: Of the new file.
        found: The objects.
        names: Of the classes.
        file_name: Of the image.
        things: Classes that have objects: the categories.
    """
    height, width = found.ids.shape[:2]
    image = {"id": 1, "file_name": file_name, "height": height, "width": width}
    categories = [{"id": label, "name": names[label]} for label in things]
    with path.open("w", encoding="utf-8") as file:
        head = json.dumps({"images": [image], "categories": categories}, ensure_ascii=False)
        file.write(head[:-1] + ', "annotations": [')
        for number, (top, left), mask in found.masks():
            rows, columns = mask.shape
            annotation = {
                "id": number,
                "image_id": 1,
                "category_id": int(found.classes[number]),
                "area": int(found.shapes.pixels[number]),
                "bbox": [left, top, columns, rows],
                "iscrowd": 0,
                "segmentation": {
                    "size": [height, width],
                    "counts": compress(run_lengths(mask, (top, left), (height, width))),
                },
            }
            if found.scores is not None:
                annotation["score"] = round(float(found.scores[number]), 6)
            file.write((",\n" if number > 1 else "\n") + json.dumps(annotation))
        file.write("\n]}\n")


def run_lengths(mask: Array, corner: tuple[int, int], size: tuple[int, int]) -> list[int]:
    """Lengths of runs of 0, 1, 0, … down the columns of an image, as COCO counts them.

    Args:
        mask: (rows, columns) bool, a part of the image; elsewhere is nothing.
        corner: Row and column of its upper left pixel.
        size: (height, width) of the image.
    """
    (top, left), (height, width) = corner, size
    padded = np.pad(mask.T, ((0, 0), (1, 1))).astype(np.int8)
    column, row = np.nonzero(np.diff(padded, axis=1))  # first row of a run, then the first beyond it
    edges = (column + left) * height + row + top
    is_kept = np.ones(len(edges), bool)
    meets = edges[1:-1:2] == edges[2::2]  # a run that goes on at the top of the next column
    is_kept[1:-1:2] &= ~meets
    is_kept[2::2] &= ~meets
    bounds = np.concatenate([[0], edges[is_kept], [height * width]])
    lengths: list[int] = np.diff(bounds).tolist()
    return lengths if lengths[-1] else lengths[:-1]


def compress(lengths: Sequence[int]) -> str:
    """Run lengths as COCO's text, see `castvision.data.datasets.coco_shapes.decode_compressed`, which reads it."""
    letters = []
    for index, length in enumerate(lengths):
        value = length - lengths[index - 2] if index > 2 else length
        while True:
            piece, value = value & 31, value >> 5
            is_last = value == (-1 if piece & 16 else 0)
            letters.append(chr(48 + piece + (0 if is_last else 32)))
            if is_last:
                break
    return "".join(letters)
