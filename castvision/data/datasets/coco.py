"""COCO's instance annotations (polygons, run lengths) as the class of every pixel.

Shapes are drawn exactly: a pixel belongs to a shape that covers its centre.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.datasets.samples import PixelDataset, check_files, load_pixels
from castvision.data.reading.labels import check_same_size
from castvision.losses import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.data.datasets.samples import Transform
    from castvision.data.reading.pixels import Mask, Pixels

_MAX_CATEGORIES = 254


@dataclass(frozen=True)
class CocoFile:
    """What one annotation file says.

    Attributes:
        path: The file.
        class_names: "background", then the categories in the order of their ids.
        images: (file, height, width) of each image, in the order of the file.
        objects: Annotations of each image, in the order they are painted: crowds first, then large before small.
        label_of: Class of each category id.
    """

    path: Path
    class_names: list[str]
    images: list[tuple[Path, int, int]]
    objects: list[list[dict[str, Any]]] = field(repr=False)
    label_of: dict[int, int]


def read_coco(path: str | Path, images: str | Path | None = None) -> CocoFile:
    """Read an annotation file.

    Args:
        path: JSON with "images", "annotations" and "categories".
        images: The folder of the images; None for the annotation file's.

    Returns:
        Its content, checked.

    Raises:
        FileNotFoundError: No such file, or an image that is missing.
        ValueError: Not such a file, or an annotation of an unknown image or category.
    """
    path = Path(path)
    content = _load(path)
    folder = path.parent if images is None else Path(images)
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    label_of = {int(category["id"]): label for label, category in enumerate(categories, start=1)}
    if len(label_of) != len(categories) or not 1 <= len(categories) <= _MAX_CATEGORIES:
        raise ValueError(f"expected 1..{_MAX_CATEGORIES} categories of different ids in {str(path)!r}")
    index_of = {entry["id"]: index for index, entry in enumerate(content["images"])}
    if len(index_of) != len(content["images"]) or not index_of:
        raise ValueError(f"expected images of different ids in {str(path)!r}, got {len(content['images'])}")
    objects: list[list[dict[str, Any]]] = [[] for _ in index_of]
    for annotation in content["annotations"]:
        for key, known in (("image_id", index_of), ("category_id", label_of)):
            if annotation.get(key) not in known:
                raise ValueError(
                    f"{path}, annotation {annotation.get('id')}: {key} {annotation.get(key)!r} is not in the file"
                )
        if annotation.get("segmentation"):
            objects[index_of[annotation["image_id"]]].append(annotation)
    for some in objects:
        some.sort(key=lambda one: (not one.get("iscrowd"), -float(one.get("area") or 0)))
    files = [(folder / entry["file_name"], int(entry["height"]), int(entry["width"])) for entry in content["images"]]
    check_files([file for file, _, _ in files])
    names = ["background", *(str(category["name"]) for category in categories)]
    return CocoFile(path, names, files, objects, label_of)


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no such annotation file: {str(path)!r}; check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"expected JSON in {str(path)!r}: {error}; export it again") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise ValueError(f"expected the lists {', '.join(keys)} in {str(path)!r}; is it COCO's instance format?")
    needed = {"images": ("id", "file_name", "height", "width"), "categories": ("id", "name")}
    for key, names in needed.items():
        for index, entry in enumerate(content[key]):
            missing = [name for name in names if name not in entry]
            if missing:
                raise ValueError(f"{path}, {key}[{index}]: expected {', '.join(names)}, missing {', '.join(missing)}")
    return content


class CocoSegmentation(PixelDataset):
    """Items are (image (C, height, width) float32, mask (height, width) int64 with 255 = ignored).

    The class of a pixel is that of the smallest object on it; background is 0; crowds are ignored where no object lies.

    Args:
        coco: See `read_coco`.
        transform: See `PixelDataset`.
        in_chans: See `PixelDataset`.
    """

    def __init__(self, coco: CocoFile, *, transform: Transform | None = None, in_chans: int | None = None) -> None:
        self.coco = coco
        self.transform = transform
        self.in_chans = in_chans

    def __len__(self) -> int:
        """Number of images."""
        return len(self.coco.images)

    def name(self, index: int) -> str:
        """The image's path."""
        return str(self.coco.images[index][0])

    def read(self, index: int) -> tuple[Pixels, Pixels]:
        """See `PixelDataset.read`."""
        pixels = load_pixels(self.coco.images[index][0], self.in_chans, self.bands)
        mask = self.mask(index)
        check_same_size(pixels, mask, self.name(index), str(self.coco.path))
        return pixels, mask

    def mask(self, index: int) -> Pixels:
        """Paint one image's objects.

        Returns:
            (height, width) uint8.

        Raises:
            ValueError: A shape that cannot be painted; the message names file and annotation.
        """
        _, height, width = self.coco.images[index]
        mask = np.zeros((height, width), dtype=np.uint8)
        for one in self.coco.objects[index]:
            label = IGNORED if one.get("iscrowd") else self.coco.label_of[one["category_id"]]
            try:
                for shape in _shapes(one["segmentation"], (height, width)):
                    mask[shape] = label
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{self.coco.path}, annotation {one.get('id')}: {error}") from error
        return mask


def _shapes(segmentation: Any, size: tuple[int, int]) -> list[Mask]:
    if isinstance(segmentation, list):
        return [fill_polygon(polygon, size) for polygon in segmentation]
    counts = segmentation["counts"]
    if isinstance(counts, str):
        raise ValueError("compressed run lengths; write them as a list of numbers or as polygons")
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"expected run lengths of size {size} as the image, got {tuple(segmentation['size'])}")
    return [decode_runs(counts, size)]


def fill_polygon(polygon: Sequence[float], size: tuple[int, int]) -> Mask:
    """Rasterise one polygon by the even-odd rule.

    A pixel (row, column) has its centre at (x, y) = (column + 0.5, row + 0.5), as in COCO. Each edge toggles, in every
    row whose centre line it crosses, the first pixel right of the crossing; running parities along the rows are the
    inside. Two polygons that share an edge therefore neither overlap nor leave a gap.

    Args:
        polygon: x0, y0, x1, y1, …; three points or more; parts outside the image are cut off.
        size: (height, width) of the image.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: An odd number of values, fewer than three points, or values that are not finite.
    """
    points = np.asarray(polygon, dtype=np.float64)
    if points.ndim != 1 or len(points) < 6 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"expected a polygon x0, y0, x1, y1, x2, y2, … of finite numbers, got {len(points)} values")
    height, width = size
    start = points.reshape(-1, 2)
    end = np.roll(start, -1, axis=0)
    upper, lower = (np.where((start[:, 1] <= end[:, 1])[:, None], *pair) for pair in ((start, end), (end, start)))
    first, last = (np.ceil(side[:, 1] - 0.5).clip(0, height).astype(np.int64) for side in (upper, lower))
    counts = np.maximum(last - first, 0)  # rows whose centre line an edge crosses: upper <= row + 0.5 < lower
    edge = np.repeat(np.arange(len(start)), counts)
    row = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + first[edge]
    slope = (lower[edge, 0] - upper[edge, 0]) / (lower[edge, 1] - upper[edge, 1])
    crossing = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * slope
    column = np.ceil(crossing - 0.5).clip(0, width).astype(np.int64)
    toggles = np.zeros((height, width + 1), dtype=np.int32)
    np.add.at(toggles, (row, column), 1)
    inside: Mask = np.cumsum(toggles[:, :width], axis=1) % 2 == 1
    return inside


def decode_runs(counts: Sequence[int], size: tuple[int, int]) -> Mask:
    """COCO's uncompressed run lengths: column by column, background first.

    Args:
        counts: Lengths of the runs.
        size: (height, width).

    Returns:
        (height, width) bool.

    Raises:
        ValueError: The runs do not fill the image.
    """
    height, width = size
    lengths = np.asarray(counts, dtype=np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
        raise ValueError(f"expected runs that fill {height} × {width} pixels, got a sum of {int(lengths.sum())}")
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(width, height).T
