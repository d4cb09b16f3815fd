"""From an export of an annotation tool to a folder that trains: masks, a list of images and masks, class names."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageOps

from castvision.data.annotations.cvat import read_cvat
from castvision.data.annotations.label_studio import read_label_studio
from castvision.data.annotations.labelme import read_labelme
from castvision.data.annotations.shapes import class_name, covered
from castvision.data.reading.opening import open_image
from castvision.files import draft
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from castvision.data.annotations.shapes import AnnotatedImage, Annotations
    from castvision.data.reading.pixels import Pixels

Rectangles = Literal["paint", "ignore"]
Unlabelled = Literal["background", "ignore"]
_BACKGROUND = "background"
_AS_BACKGROUND = ("background", "_background_")
_AS_IGNORED = "__ignore__"
_MAX_CLASSES = 255


@dataclass
class Conversion:
    """What was written.

    Attributes:
        class_names: In the order of the labels in the masks.
        images: How many masks.
        empty: How many of them hold no shape.
        shapes: Shapes drawn, by class; "ignored" for those whose pixels are.
        rectangles: How many of them are rectangles.
        without_pixels: Shapes, by class, that cover no pixel of their image (no area, or outside).
        hidden: Shapes, by class, that lie wholly under later ones.
        left_out: Entries that are no areas, by kind.
        names_outside: Whether the list names images outside its folder: where they are.
    """

    class_names: list[str]
    images: int = 0
    empty: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    rectangles: int = 0
    without_pixels: Counter[str] = field(default_factory=Counter)
    hidden: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    names_outside: bool = False


def convert_annotations(
    source: Path,
    output: Path,
    *,
    images: Path | None = None,
    class_names: Sequence[str] | None = None,
    rectangles: Rectangles = "paint",
    unlabelled: Unlabelled = "background",
    copy_images: bool = False,
) -> Conversion:
    """Draw what was annotated as masks.

    A pixel belongs to the shape that covers its centre, and to the uppermost of several, as in the tool: LabelMe and
    Label Studio lay later shapes over earlier ones, CVAT goes by z_order.

    Args:
        source: LabelMe's folder (or one JSON file of it), CVAT's XML, or Label Studio's JSON.
        output: A new or empty folder: ``masks/NAME.png`` (palettes of class numbers, 255 = ignored), ``images.csv``
            (image, mask and, where an export says so, split) and ``classes.txt``.
        images: Where the images lie; None = where the export says, or beside it.
        class_names: In the order of the labels; None = background, then as the tool lists them, else by name.
            "background" and "_background_" are one, and "__ignore__" is no class: its pixels are ignored.
        rectangles: Whether a rectangle is filled, or its pixels are ignored because it is a box around an object.
        unlabelled: What pixels without a shape are.
        copy_images: Also put the images into ``images``; otherwise the list names them where they are. Images that
            stand in their annotation files are written there anyway.

    Returns:
        Counts for people.

    Raises:
        FileExistsError: The output folder holds something.
        FileNotFoundError: The source or an image is missing.
        ValueError: An export that cannot be read, a label that is not in ``class_names``, an image of another size than
            annotated, one image under two entries; nothing has been written then.
    """
    found = read_annotations(source, images)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"expected a new or empty folder, got {str(output)!r}; name another")
    if not found.images:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in found.left_out.items())
        raise ValueError(f"expected annotated images in {str(source)!r}, found none ({kinds})")
    names = _class_names(found, class_names, unlabelled)
    label_of = {name: label for label, name in enumerate(names)}
    label_of |= dict.fromkeys(_AS_BACKGROUND, label_of[_BACKGROUND]) if _BACKGROUND in label_of else {}
    label_of[_AS_IGNORED] = IGNORED
    _check_labels(found, label_of)
    _check_once(found.images)
    sizes = [_size(image) for image in found.images]
    done = Conversion(names, len(found.images), left_out=found.left_out)
    with_splits = all(image.split for image in found.images)
    rows = []
    outside = IGNORED if unlabelled == "ignore" else 0
    for image, size in zip(found.images, sizes, strict=True):
        mask = _draw(image, size, label_of, rectangles, outside, done)
        place = output / "masks" / PurePosixPath(image.name).with_suffix(".png")
        _write_mask(place, mask, len(names))
        where = _place_image(image, output, copy_images)
        done.names_outside |= where.startswith("../") or Path(where).is_absolute()
        row = [where, place.relative_to(output).as_posix()]
        rows.append([*row, image.split] if with_splits else row)
    with draft(output / "images.csv") as path, path.open("w", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["image", "mask", "split"][: 3 if with_splits else 2], *rows])
    with draft(output / "classes.txt") as path:
        path.write_text("\n".join(names) + "\n", encoding="utf-8")
    return done


def read_annotations(source: Path, images: Path | None = None) -> Annotations:
    """Read an export of any of the tools, told apart by what it is.

    Raises:
        FileNotFoundError: No such file or folder, or an image that is missing.
        ValueError: None of them, or one that cannot be read.
    """
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {str(source)!r}; check the path")
    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"expected a folder of images, found none at {str(images)!r}")
    if source.is_dir():
        return read_labelme(source, images)
    suffix = source.suffix.lower()
    if suffix == ".zip":
        raise ValueError(f"expected a folder or a file, got {str(source)!r}; unpack it, and give what is in it")
    readers: Mapping[str, Callable[[Path, Path | None], Annotations]] = {".xml": read_cvat, ".json": _read_json}
    if suffix not in readers:
        raise ValueError(
            f"expected LabelMe's folder, CVAT's .xml or Label Studio's .json, got {str(source)!r}; COCO files are read "
            "as they are, by CocoDataModule"
        )
    return readers[suffix](source, images)


def _read_json(source: Path, images: Path | None) -> Annotations:
    head = source.read_bytes()[:64].decode("utf-8-sig", "replace").lstrip()
    if head.startswith("["):
        return read_label_studio(source, images)
    text = source.read_text(encoding="utf-8-sig", errors="replace")
    if '"annotations"' in text and '"categories"' in text and '"shapes"' not in text:
        raise ValueError(f"{source} is a COCO file, which CocoDataModule reads as it is; no conversion is needed")
    return read_labelme(source, images)


def _class_names(found: Annotations, given: Sequence[str] | None, unlabelled: Unlabelled) -> list[str]:
    drawn = {shape.label for image in found.images for shape in image.shapes}
    if given is not None:
        names = [class_name(str(name)) for name in given]
    else:
        special = {*_AS_BACKGROUND, _AS_IGNORED}
        listed = list(dict.fromkeys(class_name(name) for name in found.class_names or []))
        names = [*(name for name in listed if name not in special), *sorted(drawn - special - {*listed})]
        if unlabelled == "background" or drawn & {*_AS_BACKGROUND}:
            names.insert(0, _BACKGROUND)
    if len(set(names)) < len(names) or not 1 <= len(names) <= _MAX_CLASSES:
        raise ValueError(f"expected 1..{_MAX_CLASSES} different class names, got {len(names)}: {', '.join(names[:8])}")
    if unlabelled == "background" and names[0] not in _AS_BACKGROUND:
        raise ValueError(
            f"expected background as the first class, for pixels without a shape, got {names[0]!r}; list it, or have "
            "those pixels ignored (--unlabelled ignore)"
        )
    return [_BACKGROUND if name in _AS_BACKGROUND else name for name in names]


def _check_labels(found: Annotations, label_of: Mapping[str, int]) -> None:
    for image in found.images:
        for shape in image.shapes:
            if shape.label not in label_of:
                raise ValueError(
                    f"{image.where}: expected a class of {', '.join(list(label_of)[:8])}, got {shape.label!r}; add it "
                    "to the class names"
                )


def _check_once(images: Sequence[AnnotatedImage]) -> None:
    first: dict[str, str] = {}
    for image in images:
        keys = [str(PurePosixPath(image.name).with_suffix(""))]
        if image.path is not None:
            keys.append(f"file {os.path.realpath(image.path)}")
        for key in keys:
            if key in first:
                raise ValueError(
                    f"expected an image once, and one image of a name, got {image.name!r} by {first[key]} and "
                    f"{image.where}; remove or rename one of them"
                )
            first[key] = image.where
        if PurePosixPath(image.name).is_absolute() or ".." in PurePosixPath(image.name).parts:
            raise ValueError(f"{image.where}: expected a name below the folder of images, got {image.name!r}")


def _size(image: AnnotatedImage) -> tuple[int, int]:
    """(height, width) of the image itself, which must be what was annotated."""
    if image.path is not None:
        with open_image(image.path) as reader:
            size = reader.height, reader.width
    else:
        size = _embedded_size(image)
    if image.size is not None and image.size != size:
        raise ValueError(
            f"{image.where}: expected an image of {image.size[0]} × {image.size[1]} pixels (height × width), as "
            f"annotated, got {size[0]} × {size[1]} in {str(image.path or 'imageData')!r}; find the one annotated"
        )
    return size


def _embedded_size(image: AnnotatedImage) -> tuple[int, int]:
    try:
        with Image.open(io.BytesIO(image.embedded or b"")) as picture:
            width, height = ImageOps.exif_transpose(picture).size
    except OSError as error:
        raise ValueError(f"{image.where}: cannot read the image in it: {error}") from error
    return height, width


def _draw(
    image: AnnotatedImage,
    size: tuple[int, int],
    label_of: Mapping[str, int],
    rectangles: Rectangles,
    outside: int,
    done: Conversion,
) -> Pixels:
    """One mask; what is drawn is counted."""
    mask = np.full(size, outside, np.uint8)
    owner = np.zeros(size, np.int32)
    drawn: list[str] = []
    for shape in image.shapes:
        found = covered(shape.form, size)
        if found is None:
            done.without_pixels[shape.label] += 1
            continue
        label = IGNORED if shape.is_box and rectangles == "ignore" else label_of[shape.label]
        y, x, inside = found
        here = slice(y, y + inside.shape[0]), slice(x, x + inside.shape[1])
        mask[here][inside] = label
        drawn.append(shape.label)
        owner[here][inside] = len(drawn)
        done.shapes["ignored" if label == IGNORED else done.class_names[label]] += 1
        done.rectangles += shape.is_box
    visible = set(np.unique(owner).tolist()) if drawn else set()
    done.hidden.update(label for number, label in enumerate(drawn, start=1) if number not in visible)
    done.empty += not drawn
    return mask


def _write_mask(path: Path, mask: Pixels, count: int) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette([value for label in range(256) for value in _colour(label if label < count else IGNORED)])
    with draft(path) as temporary:
        picture.save(temporary, "PNG")


def _colour(label: int) -> tuple[int, int, int]:
    """Pascal VOC's colours, which annotation tools use too: of each three bits of the label one for each channel."""
    red = green = blue = 0
    for place in range(7, -1, -1):
        red, green, blue = (value | (label >> channel & 1) << place for channel, value in enumerate((red, green, blue)))
        label >>= 3
    return red, green, blue


def _place_image(image: AnnotatedImage, output: Path, copy_images: bool) -> str:
    """The image's path relative to the output folder; copied there or written, where that is asked for or needed."""
    if image.path is not None and not copy_images:
        try:
            return Path(os.path.relpath(image.path.resolve(), output.resolve())).as_posix()
        except ValueError:  # on another drive
            return str(image.path.resolve())
    place = output / "images" / image.name
    with draft(place) as temporary:
        if image.path is None:
            temporary.write_bytes(image.embedded or b"")
        else:
            shutil.copyfile(image.path, temporary)
    return place.relative_to(output).as_posix()
