"""The files of an image's objects, as `castvision predict --instances` names them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from castvision.inference.writers.instance_files import (
    COCO_PIXELS,
    ground_of,
    write_coco,
    write_instance_geojson,
    write_table,
)
from castvision.inference.writers.raster import write_tiff

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data import Georeference
    from castvision.inference.files import OutputFolder
    from castvision.inference.instances.table import Instances

KINDS = ("tiff", "coco", "geojson", "csv")


def check_size(size: tuple[int, int], kinds: Sequence[str]) -> None:
    """Refuse an image, before work starts, that a format cannot hold.

    Args:
        size: (height, width) of the map of objects.
        kinds: Of `KINDS`.

    Raises:
        ValueError: COCO's run lengths of an image of 4 gigapixels or more.
    """
    if "coco" in kinds and math.prod(size) >= COCO_PIXELS:
        raise ValueError(
            f"an image of {size[0]:,} × {size[1]:,} pixels is too large for the run lengths of COCO (32 bits); "
            f"give --instance-files {','.join(kind for kind in kinds if kind != 'coco') or 'tiff,geojson,csv'}"
        )


def write_instances(
    output: OutputFolder,
    name: str,
    found: Instances,
    names: Sequence[str],
    *,
    image: str,
    things: Sequence[int],
    kinds: Sequence[str],
    georeference: Georeference | None,
    mpp: tuple[float, float] | None,
    pixel_size: tuple[float, float],
    simplify: float,
) -> list[str]:
    """Write ``instances/NAME.tif``, ``.json`` (COCO), ``.geojson`` and ``.csv``.

    Args:
        output: Where.
        name: Of the image's results.
        found: The objects.
        names: Of the classes.
        image: Name of its file.
        things: Classes that have objects.
        kinds: Which files, of `KINDS`.
        georeference: At the map's resolution.
        mpp: Microns per pixel of the map, across and down, where there is no georeference.
        pixel_size: (width, height) of the map's pixels in pixels of the full image.
        simplify: Tolerance of outlines, in pixels.

    Returns:
        The files' names.
    """
    files = []
    place: dict[str, Any] = {"georeference": georeference, "mpp": mpp}

    def draft(ending: str) -> Any:
        files.append(f"instances/{name}.{ending}")
        return output.draft(files[-1])

    if "tiff" in kinds:
        with draft("tif") as path:
            write_tiff(path, found.ids, nodata=None, **place)
    if "coco" in kinds:
        with draft("json") as path:
            write_coco(path, found, names, image, things)
    if "geojson" in kinds:
        with draft("geojson") as path:
            write_instance_geojson(
                path, found, names, georeference=georeference, pixel_size=pixel_size, simplify=simplify
            )
    if "csv" in kinds:
        with draft("csv") as path:
            write_table(path, found, names, ground_of(georeference, mpp))
    return files
