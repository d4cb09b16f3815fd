"""CVAT's export "CVAT for images 1.1": one XML file. Its COCO export needs no conversion."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

from castvision.data.annotations.shapes import (
    AnnotatedImage,
    Annotations,
    Bitmap,
    Outline,
    Oval,
    Shape,
    bitmap_of_runs,
    numbers,
    points_of,
    turned_box,
)
from castvision.data.reading.folders import first_file

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from xml.etree.ElementTree import Element

_WITHOUT_AREA = ("polyline", "points", "skeleton", "tag")
_KINDS = ("polygon", "box", "ellipse", "mask")
_SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}


def read_cvat(file: Path, images: Path | None = None) -> Annotations:
    """Read an export.

    Args:
        file: ``annotations.xml``.
        images: Where the images lie; None = beside the file, or in ``images`` there, as CVAT packs them.

    Returns:
        What it holds; shapes lie over each other as CVAT draws them, by z_order, then in the order of the file.

    Raises:
        FileNotFoundError: An image that is missing.
        ValueError: Another file, a shape that is none, or some images in a split and some not; the message names it.
    """
    try:
        root = ElementTree.fromstring(file.read_bytes())
    except ElementTree.ParseError as error:
        raise ValueError(f"expected XML in {str(file)!r}: {error}; export it again") from error
    if root.tag != "annotations":
        raise ValueError(f"expected CVAT's element 'annotations' in {str(file)!r}, got {root.tag!r}")
    if root.find("track") is not None:
        raise ValueError(f"{file}: expected 'CVAT for images 1.1', got a video's tracks; export in that format")
    labels = [name.strip() for name in (element.text for element in root.findall("meta//label/name")) if name]
    found = Annotations(class_names=list(dict.fromkeys(labels)) or None)
    for element in root.findall("image"):
        image = _image(file, element, images)
        layers: list[tuple[int, Shape]] = []
        for number, entry in enumerate(element):
            if entry.tag in _WITHOUT_AREA:
                found.left_out[f"{entry.tag} (no area)"] += 1
                continue
            try:
                label = (entry.get("label") or "").strip()
                if not label:
                    raise ValueError("expected a label, got none")
                layers.append((int(entry.get("z_order") or 0), Shape(label, _form(entry), entry.tag == "box")))
            except ValueError as error:
                raise ValueError(f"{image.where}, shape {number} ({entry.tag}): {error}") from error
        image.shapes = [shape for _, shape in sorted(layers, key=lambda layer: layer[0])]
        found.images.append(image)
    if not found.images:
        raise ValueError(f"expected images in {str(file)!r}, found none; export the task again")
    _check_splits(file, found.images)
    return found


def _check_splits(file: Path, images: Sequence[AnnotatedImage]) -> None:
    """Refuse splits of some images only: the list of images could not keep them, and test images would be trained on.

    Raises:
        ValueError: It names one of those in no split.
    """
    without = [image.name for image in images if image.split is None]
    if 0 < len(without) < len(images):
        raise ValueError(
            f"{file}: expected every image in a subset called train, validation or test, or none of them, got "
            f"{len(without)} in others or in no subset, such as {without[0]!r}; give their tasks one of these in CVAT"
        )


def _image(file: Path, element: Element, images: Path | None) -> AnnotatedImage:
    name, subset = (element.get("name") or "").replace("\\", "/"), element.get("subset") or ""
    where = f"{file}, image {name!r}"
    folders = [images] if images is not None else [file.parent, file.parent / "images"]
    places = [folder / part / name for folder in folders for part in (subset, "")]
    path = first_file(places) if name else None
    if path is None:
        raise FileNotFoundError(f"{where}: found no such file in {str(folders[-1])!r}; say where it is by --images")
    try:
        height, width = numbers((element.get("height"), element.get("width")), 2)
    except ValueError as error:
        raise ValueError(f"{where}: height and width: {error}") from error
    below = name if not subset or name.startswith(f"{subset}/") else f"{subset}/{name}"
    return AnnotatedImage(
        below, where, path, size=(int(height), int(width)), split=_SPLITS.get(subset.casefold())
    )  # fmt: skip


def _form(entry: Element) -> Outline | Oval | Bitmap:
    def values(*names: str) -> list[float]:
        try:
            return numbers([entry.get(name) for name in names], len(names))
        except ValueError as error:
            raise ValueError(f"{', '.join(names)}: {error}") from error

    turned = float(entry.get("rotation") or 0)
    if entry.tag == "polygon":
        return Outline(points_of([pair.split(",") for pair in (entry.get("points") or "").split(";") if pair]))
    if entry.tag == "box":
        left, top, right, bottom = values("xtl", "ytl", "xbr", "ybr")
        return turned_box(left, top, right - left, bottom - top, turned)
    if entry.tag == "ellipse":
        x, y, across, down = values("cx", "cy", "rx", "ry")
        return Oval(x, y, across, down, turned)
    if entry.tag == "mask":
        left, top, width, height = map(int, values("left", "top", "width", "height"))
        runs = numbers(part for part in (entry.get("rle") or "").split(","))
        return Bitmap(top, left, bitmap_of_runs(runs, (height, width)))
    raise ValueError(f"expected a shape of {', '.join(_KINDS)}, got {entry.tag!r}; draw it as one of them in CVAT")
