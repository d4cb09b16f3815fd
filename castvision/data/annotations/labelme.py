"""LabelMe's annotations: a JSON file beside each image, or with the image in it."""

from __future__ import annotations

import base64
import binascii
import io
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from castvision.data.annotations.shapes import AnnotatedImage, Annotations, Bitmap, Outline, Oval, Shape, points_of
from castvision.data.reading.folders import first_file, is_stray, name_of, walk_images
from castvision.files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_KINDS = ("polygon", "rectangle", "oriented_rectangle", "rotation", "circle", "mask")
_BOXES = ("rectangle", "oriented_rectangle", "rotation")
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8": ".jpg", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}


def read_labelme(folder: Path, images: Path | None = None) -> Annotations:
    """Read the annotations of a folder and of those in it.

    Args:
        folder: Of the JSON files, or one of them.
        images: Where the images lie; None = where the files say, else beside them.

    Returns:
        What they hold.

    Raises:
        FileNotFoundError: No JSON file, or an image that is neither found nor in its file.
        ValueError: Another file, or a shape that is none; the message names the file.
    """
    found = Annotations()
    root = folder if folder.is_dir() else folder.parent
    files = sorted(_json_files(folder)) if folder.is_dir() else [folder]
    if not files:
        raise FileNotFoundError(f"expected LabelMe's JSON files in {str(folder)!r}, found none")
    for file in files:
        content = _load(file)
        image = _image(file, content, root, images)
        for number, entry in enumerate(content["shapes"]):
            kind = entry.get("shape_type") or "polygon"
            if kind in _WITHOUT_AREA:
                found.left_out[f"{kind} (no area)"] += 1
                continue
            try:
                image.shapes.append(Shape(_label(entry), _form(entry, kind), kind in _BOXES))
            except (ValueError, TypeError, KeyError, OSError) as error:
                raise ValueError(f"{file}, shape {number}: {error}") from error
        found.images.append(image)
    if folder.is_dir():
        known = {name_of(file.relative_to(root)) for file in files}
        without = [path for path in walk_images(folder) if name_of(path.relative_to(root)) not in known]
        taken = {image.path for image in found.images}
        if without := [path for path in without if path not in taken]:
            found.left_out["image without annotations"] = len(without)
    return found


def _json_files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*.json")
        if path.is_file() and not any(is_stray(part, is_folder=True) for part in path.relative_to(folder).parts)
    ]


def _load(file: Path) -> dict[str, Any]:
    content = read_json(file)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not all(isinstance(entry, dict) for entry in shapes):
        raise ValueError(f"expected LabelMe's list 'shapes' in {str(file)!r}, found none; move the file away")
    return dict(content)


def _image(file: Path, content: Mapping[str, Any], root: Path, images: Path | None) -> AnnotatedImage:
    stated = content.get("imageHeight"), content.get("imageWidth")
    size = None if None in stated else (int(stated[0] or 0), int(stated[1] or 0))
    told = str(content.get("imagePath") or "").replace("\\", "/")
    below = file.relative_to(root)
    path = _find_image(file, told, below, images)
    if path is not None:
        return AnnotatedImage(below.with_suffix(path.suffix).as_posix(), str(file), path, size=size)
    if not content.get("imageData"):
        raise FileNotFoundError(
            f"{file}: found no image {told!r} beside it or in {str(images or file.parent)!r}, and none in the file; "
            "say where the images are by --images"
        )
    data = _decode(content["imageData"], f"{file}: imageData")
    suffix = next((suffix for start, suffix in _SUFFIXES.items() if data.startswith(start)), None)
    if suffix is None:
        raise ValueError(
            f"{file}: expected a PNG, JPEG, BMP or TIFF in imageData, got none of them; give the images by --images"
        )
    return AnnotatedImage(below.with_suffix(suffix).as_posix(), str(file), embedded=data, size=size)


def _find_image(file: Path, told: str, below: Path, images: Path | None) -> Path | None:
    name = Path(told).name
    places = [file.parent / told, file.parent / name]
    if images is not None:
        # the folder that mirrors the annotation's own comes first: another image of that name may lie above it
        places = [images / below.parent / told, images / below.parent / name, images / told, images / name, *places]
    return first_file(places) if told else None


def _decode(text: Any, what: str) -> bytes:
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, TypeError, ValueError) as error:
        raise ValueError(f"{what}: expected base64, got other text ({error})") from error


def _label(entry: Mapping[str, Any]) -> str:
    label = entry.get("label")
    if label is None or not str(label).strip():
        raise ValueError("expected a label, got none")
    return str(label)


def _form(entry: Mapping[str, Any], kind: str) -> Outline | Oval | Bitmap:
    if kind not in _KINDS:
        raise ValueError(f"expected a shape of {', '.join(_KINDS)}, got {kind!r}; draw it as one of them")
    points = points_of(entry["points"])
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        return Outline(((left, top), (right, top), (right, bottom), (left, bottom)))
    if kind == "circle":
        _check_count(points, 2, kind)
        (x, y), rim = points
        radius = math.dist((x, y), rim)
        return Oval(x, y, radius, radius)
    if kind == "mask":
        _check_count(points, 2, kind)
        return _bitmap(points, entry.get("mask"))
    if kind != "polygon":
        _check_count(points, 4, kind)
    return Outline(points)


def _check_count(points: Sequence[object], count: int, kind: str) -> None:
    if len(points) != count:
        raise ValueError(f"expected {count} points of a {kind}, got {len(points)}")


def _bitmap(points: Sequence[tuple[float, float]], text: Any) -> Bitmap:
    """A mask lies between two corners, both of which belong to it."""
    (left, top), (right, bottom) = ((round(x), round(y)) for x, y in points)
    with Image.open(io.BytesIO(_decode(text, "mask"))) as picture:
        mask = np.asarray(picture.convert("L")) > 0
    if mask.shape != (bottom - top + 1, right - left + 1):
        raise ValueError(
            f"expected a mask of {bottom - top + 1} × {right - left + 1} pixels (height × width) between its corners, "
            f"got {mask.shape[0]} × {mask.shape[1]}"
        )
    return Bitmap(top, left, mask)
