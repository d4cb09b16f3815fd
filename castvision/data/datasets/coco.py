"""COCO's instance annotations (polygons, run lengths) as the class of every pixel: what a file says.

Shapes are drawn by `castvision.data.datasets.coco_shapes`.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from castvision.data.datasets.coco_shapes import (
    decode_compressed,
    decode_runs,
    fill_polygon,
    has_no_area,
    meets,
    polygon_area,
)
from castvision.data.datasets.leaks import check_apart
from castvision.data.datasets.listed import listed_files
from castvision.data.datasets.samples import PixelDataset, check_files, load_pixels
from castvision.data.reading.agreement import check_same_size
from castvision.data.reading.folders import nfc
from castvision.files import read_json
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.datasets.samples import Transform
    from castvision.data.reading.pixels import Mask, Pixels

logger = logging.getLogger(__name__)

Id = int | str
Boxes = Literal["refuse", "ignore", "paint"]
_MAX_CATEGORIES = 254
_BACKGROUND = ("background", "_background_")


@dataclass(frozen=True)
class CocoFile:
    """What one annotation file says.

    Attributes:
        path: The file.
        class_names: "background", then the names of the categories in the order of their ids, each once and no other
            background.
        images: (file, height, width) of each image, in the order of the file; one image under several ids stands once.
        objects: Annotations of each image, in the order they are painted: crowds first, then large before small.
        label_of: Class of each category id.
        ids: The id of each image.
    """

    path: Path
    class_names: list[str]
    images: list[tuple[Path, int, int]]
    objects: list[list[dict[str, Any]]] = field(repr=False)
    label_of: dict[Id, int]
    ids: list[Id] = field(repr=False)


def read_coco(
    path: str | Path,
    images: str | Path | None = None,
    *,
    boxes: Boxes = "refuse",
    root: str | Path | None = None,
    allow_outside_root: bool = False,
) -> CocoFile:
    """Read an annotation file.

    Ids are numbers or text; "7" and 7 are one. Shapes that cover nothing (fewer than three points, or all on a line, or
    beside the image) are left out with a count in the log.

    Args:
        path: JSON with "images", "annotations" and "categories".
        images: The folder of the images; None for the annotation file's.
        boxes: What becomes of objects that have a box and no outline: an error, pixels that are ignored, or the whole
            box painted.
        root: A folder that images may lie in beside ``images``.
        allow_outside_root: Take images from anywhere; a list from a stranger may name any file.

    Returns:
        Its content, checked.

    Raises:
        FileNotFoundError: No such file, or an image that is missing.
        ValueError: Not such a file, an annotation of an unknown image or category, an outline that is none, objects
            without outline, one image with two sizes, or images outside their folder.
    """
    path = Path(path)
    content = _load(path)
    folder = path.parent if images is None else Path(images)
    names, label_of = _classes(path, content["categories"])
    inside = None if allow_outside_root else [folder, *([] if root is None else [Path(root)])]
    files, ids, index_of = _images(path, content["images"], folder, inside)
    objects: list[list[dict[str, Any]]] = [[] for _ in files]
    without_area: list[Any] = []
    for annotation in content["annotations"]:
        told = f"{path}, annotation {annotation.get('id')}"
        image, category = _id(annotation.get("image_id")), _id(annotation.get("category_id"))
        for key, value, known in (("image_id", image, index_of), ("category_id", category, label_of)):
            if value not in known:
                raise ValueError(f"{told}: {key} {value!r} is not in the file")
        try:
            outline = _outline(annotation, boxes, files[index_of[image]][1:])
            area = _area({**annotation, **outline}) if outline else 0.0
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{told}: {error}") from error
        if outline:
            objects[index_of[image]].append({**annotation, "category_id": category, **outline, "area": area})
        if not outline or outline["left_out"]:
            without_area.append(annotation.get("id"))
    if without_area:
        logger.warning(
            "%s: left out shapes that cover nothing in %d of %d annotations, such as annotation %s",
            path, len(without_area), len(content["annotations"]), without_area[0],
        )  # fmt: skip
    _check_pixels(path, files, objects)
    for some in objects:
        some.sort(key=lambda one: (not one["iscrowd"], -one["area"]))
    return CocoFile(path, names, files, objects, label_of, ids)


def _id(value: Any) -> Id:
    """Exporters write ids as numbers or as text; both forms of one number are one id."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, (int, str)) else str(value)


def _order(one: Id) -> tuple[bool, int, str]:
    return (isinstance(one, str), 0 if isinstance(one, str) else one, str(one))


def _classes(path: Path, entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], dict[Id, int]]:
    """Names of the classes, and the class of each category: names are what classes agree by."""
    categories = sorted(entries, key=lambda category: _order(_id(category["id"])))
    name_of = {_id(category["id"]): nfc(str(category["name"])) for category in categories}
    if len(name_of) != len(categories) or not 1 <= len(categories) <= _MAX_CATEGORIES:
        raise ValueError(f"expected 1..{_MAX_CATEGORIES} categories of different ids in {str(path)!r}")
    names = list(dict.fromkeys(name for name in name_of.values() if name.casefold() not in _BACKGROUND))
    twice = [name for name in names if list(name_of.values()).count(name) > 1]
    if twice:
        logger.warning("%s: categories of one name are one class: %s", path, ", ".join(twice[:8]))
    return ["background", *names], {one: names.index(name) + 1 if name in names else 0 for one, name in name_of.items()}


def _images(
    path: Path, entries: Sequence[Mapping[str, Any]], folder: Path, inside: Sequence[Path] | None
) -> tuple[list[tuple[Path, int, int]], list[Id], dict[Id, int]]:
    """Each file once with its size, its id, and the index of every id."""
    names, told = [str(entry["file_name"]) for entry in entries], [f"{path}, image {one['id']}" for one in entries]
    paths = listed_files(folder, names, told, inside)
    check_files(paths)
    files: list[tuple[Path, int, int]] = []
    ids: list[Id] = []
    index_of: dict[Id, int] = {}
    index_at: dict[str, int] = {}
    for file, entry in zip(paths, entries, strict=True):
        one, size = _id(entry["id"]), _size(path, entry)
        if one in index_of:
            raise ValueError(f"expected images of different ids in {str(path)!r}, got {one!r} twice of {len(entries)}")
        index = index_of[one] = index_at.setdefault(os.path.realpath(file), len(files))
        if index == len(files):
            files.append((file, *size))
            ids.append(one)
        elif files[index][1:] != size:
            raise ValueError(
                f"{path}: {str(file)!r} stands under the ids {ids[index]!r} and {one!r} with the sizes "
                f"{files[index][1:]} and {size} (height, width); keep one of them"
            )
    if not files:
        raise ValueError(f"expected images of different ids in {str(path)!r}, got 0")
    if len(files) < len(entries):
        logger.warning("%s: %d images stand under two ids; their objects are merged", path, len(entries) - len(files))
    return files, ids, index_of


def _size(path: Path, entry: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of an image."""
    try:
        return int(entry["height"]), int(entry["width"])
    except (ValueError, TypeError):
        raise ValueError(
            f"{path}, image {entry['id']}: expected height and width as whole numbers, got {entry['height']!r} and "
            f"{entry['width']!r}; export the file again"
        ) from None


def _check_pixels(
    path: Path, files: Sequence[tuple[Path, int, int]], objects: Sequence[Sequence[Mapping[str, Any]]]
) -> None:
    """Refuse outlines as shares of an image's size, of which all would lie in its first pixel."""
    shapes = [one["segmentation"] for some in objects for one in some]
    corners = [max(polygon) for shape in shapes if isinstance(shape, list) for polygon in shape]
    if corners and max(corners) <= 1 and max(max(size) for _, *size in files) > 2:
        raise ValueError(
            f"expected outlines in pixels in {str(path)!r}, got all of them between 0 and 1, as shares of the images' "
            "sizes; multiply x by the width and y by the height"
        )


def _outline(annotation: Mapping[str, Any], boxes: Boxes, size: tuple[int, int]) -> dict[str, Any]:
    """What is painted of an annotation; empty if it covers nothing of an image (height, width).

    Raises:
        ValueError: An outline that is none, or none where there is a box and ``boxes`` says "refuse".
    """
    is_crowd = bool(int(annotation.get("iscrowd") or 0))
    shape = annotation.get("segmentation")
    if not shape:
        box = [float(value) for value in annotation.get("bbox") or ()]
        if len(box) != 4 or min(box[2:]) <= 0:
            return {}
        if boxes == "refuse":
            raise ValueError(
                "expected an outline (segmentation), got a box alone: which of its pixels are the object is not said; "
                "draw outlines, or set boxes: ignore (all its pixels are ignored) or boxes: paint (all are the object)"
            )
        x, y, width, height = box
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        if not meets(corners, size):
            return {}
        return {"segmentation": [corners], "iscrowd": is_crowd or boxes == "ignore", "left_out": 0}
    if isinstance(shape, dict):
        return {"segmentation": shape, "iscrowd": is_crowd, "left_out": 0}
    if not isinstance(shape, list):
        raise ValueError(f"expected polygons or run lengths, got {type(shape).__name__}")
    polygons = [shape] if isinstance(shape[0], (int, float)) else shape
    kept = [polygon for polygon in polygons if not has_no_area(polygon) and meets(polygon, size)]
    if not kept:
        return {}
    return {"segmentation": kept, "iscrowd": is_crowd, "left_out": len(polygons) - len(kept)}


def _area(annotation: Mapping[str, Any]) -> float:
    """As stated, or that of the box, or that of the outline."""
    stated, box, shape = annotation.get("area"), annotation.get("bbox"), annotation["segmentation"]
    area = float(stated or 0) or (float(box[2]) * float(box[3]) if box else 0.0)
    if area > 0:
        return area
    if isinstance(shape, list):
        return sum(map(polygon_area, shape))
    runs = shape["counts"]
    return float(sum((decode_compressed(runs) if isinstance(runs, str) else runs)[1::2]))


def check_ids_apart(splits: Mapping[str, CocoFile]) -> None:
    """Refuse an image id that stands in two splits.

    Ids that merely count a file's images (0, 1, 2, … or 1, 2, 3, …, as exporters number each split anew) say nothing.

    Raises:
        ValueError: There is one; the message names both files.
    """
    owner_of: dict[Id, str] = {}
    counting = {
        split
        for split, file in splits.items()
        if any(set(file.ids) == set(range(start, start + len(file.ids))) for start in (0, 1))
    }
    for split, file in splits.items():
        for one in file.ids:
            other = owner_of.setdefault(one, split)
            if other != split and not {split, other} <= counting:
                raise ValueError(
                    f"expected every image in one split, got the image id {one!r} in {other} "
                    f"({str(splits[other].path)!r}) and {split} ({str(file.path)!r}): what is measured on it would be "
                    "too good; leave it out of one, or number the images anew if it is not the same"
                )


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no such annotation file: {str(path)!r}; check the path")
    content = read_json(path)
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
    if tuple(map(int, segmentation["size"])) != size:
        raise ValueError(f"expected run lengths of size {size} as the image, got {tuple(segmentation['size'])}")
    return [decode_runs(decode_compressed(counts) if isinstance(counts, str) else counts, size)]


def open_coco(
    root: str | Path,
    annotations: Mapping[str, str],
    folders: Mapping[str, str] | None = None,
    *,
    boxes: Boxes = "refuse",
    allow_outside_root: bool = False,
) -> tuple[dict[str, CocoSegmentation], list[str]]:
    """Annotation files by split, which belong together, and the names of their classes.

    Args:
        root: What the other paths are relative to.
        annotations: A JSON file for "train", "val" and, if there is one, "test".
        folders: The folder of a split's images; by default its annotation file's.
        boxes: See `read_coco`.
        allow_outside_root: See there.

    Raises:
        FileNotFoundError: See `read_coco`.
        ValueError: See there; other splits, different categories, or one image in two splits.
    """
    if not {"train", "val"} <= set(annotations) <= {"train", "val", "test"}:
        raise ValueError(f"expected annotations for train and val (and test), got {sorted(annotations)}")
    files = {}
    for split, path in annotations.items():
        folder = (folders or {}).get(split)
        images = None if folder is None else Path(root) / folder
        files[split] = read_coco(
            Path(root) / path, images, boxes=boxes, root=root, allow_outside_root=allow_outside_root
        )
    names = files["train"].class_names
    for split, file in files.items():
        if file.class_names != names or file.label_of != files["train"].label_of:
            differing = sorted(set(file.class_names) ^ set(names))
            raise ValueError(f"expected the same categories in train and {split}, differing: {differing[:8]}")
    check_ids_apart(files)
    check_apart({split: [path for path, _, _ in file.images] for split, file in files.items()})
    return {split: CocoSegmentation(file) for split, file in files.items()}, names
