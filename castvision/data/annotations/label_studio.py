"""Label Studio's export "JSON": polygons, rectangles and ellipses in percent of the image, brushes as run lengths."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from castvision.data.annotations.shapes import (
    AnnotatedImage,
    Annotations,
    Bitmap,
    Outline,
    Oval,
    Shape,
    numbers,
    points_of,
    turned_box,
)
from castvision.data.reading.folders import as_on_disk, first_file
from castvision.files import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from castvision.data.reading.pixels import Mask

_KINDS = ("polygon", "rectangle", "ellipse", "brush")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the name of a file that was uploaded."""


def read_label_studio(file: Path, images: Path | None = None) -> Annotations:
    """Read an export.

    Args:
        file: The JSON file.
        images: Where the images lie; None = beside the file, or in ``images`` there.

    Returns:
        What it holds; tasks that nobody has annotated are left out.

    Raises:
        FileNotFoundError: An image that is missing.
        ValueError: Another file, several annotations of one task, or a shape that is none; the message names the task.
    """
    found = Annotations()
    for index, task in enumerate(_load(file)):
        where = f"{file}, task {task.get('id', index)}"
        results = _results(task, where)
        if results is None:
            found.left_out["task without an annotation"] += 1
            continue
        image = _image(task, where, [images] if images is not None else [file.parent, file.parent / "images"])
        sizes: set[tuple[int, int]] = set()
        for entry in _with_labels(results, found.left_out):
            try:
                size = _size(entry)
                image.shapes.append(_shape(entry, size))
                sizes.add(size)
            except (ValueError, TypeError, KeyError, IndexError) as error:
                message = f"no {error} in it" if isinstance(error, KeyError) else error
                raise ValueError(f"{where}, result {entry.get('id')}: {message}") from error
        if len(sizes) > 1:
            raise ValueError(f"{where}: expected one size of the image, got {sorted(sizes)} (height, width)")
        image.size = next(iter(sizes), None)
        found.images.append(image)
    return found


def _load(file: Path) -> list[dict[str, Any]]:
    content = read_json(file)
    if not isinstance(content, list) or not all(isinstance(task, dict) and "data" in task for task in content):
        raise ValueError(
            f"expected Label Studio's list of tasks with 'data' and 'annotations' in {str(file)!r}, got another; "
            "export as JSON, not as JSON-MIN (its COCO export is read without a conversion)"
        )
    return content


def _results(task: Mapping[str, Any], where: str) -> list[Mapping[str, Any]] | None:
    """What was drawn in the one annotation of a task; None if there is none."""
    given = task.get("annotations") or task.get("completions") or []
    done = [one for one in given if not one.get("was_cancelled")]
    done = [one for one in done if one.get("ground_truth")] or done
    if len(done) > 1:
        raise ValueError(
            f"{where}: expected one annotation, got {len(done)} that may disagree; delete all but one, or mark one as "
            "ground truth, and export again"
        )
    return list(done[0].get("result") or []) if done else None


def _with_labels(results: Sequence[Mapping[str, Any]], left_out: Any) -> Iterable[Mapping[str, Any]]:
    """Shapes with their labels; the rest is counted. A label may stand beside its shape under the same id."""
    labelled = {entry.get("id") for entry in results if _labels(entry)}
    for entry in results:
        kind, value = str(entry.get("type")), entry.get("value")
        if not isinstance(value, dict) or kind in ("choices", "textarea", "rating", "taxonomy", "number", "datetime"):
            left_out[f"{kind} (no area)"] += 1
        elif kind.startswith(("keypoint", "vector")):
            left_out[f"{kind} (no area)"] += 1
        elif _labels(entry) or entry.get("id") not in labelled:
            yield entry


def _labels(entry: Mapping[str, Any]) -> list[str]:
    value = entry.get("value")
    named = value.get(str(entry.get("type"))) if isinstance(value, dict) else None
    return [str(label).strip() for label in named] if isinstance(named, list) and entry.get("type") != "brush" else []


def _image(task: Mapping[str, Any], where: str, folders: Sequence[Path]) -> AnnotatedImage:
    told = [value for value in task["data"].values() if isinstance(value, str) and _is_path(value)]
    told = [task["data"]["image"]] if isinstance(task["data"].get("image"), str) else told
    if len(told) != 1:
        raise ValueError(f"{where}: expected one image in 'data', got {told or sorted(task['data'])}")
    names = list(_names(told[0]))
    places = [(folder, folder / name) for name in names for folder in folders]
    path = first_file([place for _, place in places])
    if path is None:
        raise FileNotFoundError(
            f"{where}: found no image {names[0]!r} (of {told[0]!r}) in {str(folders[-1])!r}; give --images"
        )
    folder = next(folder for folder, place in places if as_on_disk([place]) == [path])
    return AnnotatedImage(path.relative_to(folder).as_posix(), where, path)


def _is_path(value: str) -> bool:
    return bool(PurePosixPath(urlsplit(value).path).suffix) or "/local-files/" in value


def _names(told: str) -> Iterable[str]:
    """What a file may be called here: the end of its path or address, the longest first."""
    parts = urlsplit(told)
    inside = parse_qs(parts.query).get("d") if "/local-files/" in parts.path else None
    path = PurePosixPath((inside[0] if inside else unquote(parts.path)).replace("\\", "/"))
    pieces = [piece for piece in path.parts if piece not in ("/", "..", ".")]
    for start in range(len(pieces)):
        yield "/".join(pieces[start:])
    if pieces and _UPLOAD.match(pieces[-1]):
        yield pieces[-1][9:]


def _size(entry: Mapping[str, Any]) -> tuple[int, int]:
    if entry.get("image_rotation"):
        raise ValueError(
            f"the image was turned by {entry['image_rotation']} degrees while it was annotated; turn the file and "
            "annotate it again"
        )
    height, width = numbers((entry.get("original_height"), entry.get("original_width")), 2)
    return int(height), int(width)


def _shape(entry: Mapping[str, Any], size: tuple[int, int]) -> Shape:
    labels = _labels(entry)
    if len(labels) != 1:
        raise ValueError(
            f"expected one label of a {entry.get('type')}, got {labels or 'none'}; keep one, and export again"
        )
    value, kind = entry["value"], str(entry["type"]).removesuffix("labels")
    if kind == "":  # labels beside shapes: what is drawn says which it is
        keys = {"points": "polygon", "radiusX": "ellipse", "rle": "brush", "width": "rectangle"}
        kind = next((kind for key, kind in keys.items() if key in value), "labels")
    height, width = size
    across, down = width / 100, height / 100
    if kind == "polygon":
        return Shape(labels[0], Outline(tuple((x * across, y * down) for x, y in points_of(value["points"]))))
    turned = numbers([value.get("rotation") or 0], 1)[0]
    if kind == "rectangle":
        x, y, wide, tall = numbers((value["x"], value["y"], value["width"], value["height"]), 4)
        outline = turned_box(x * across, y * down, wide * across, tall * down, turned, around="corner")
        return Shape(labels[0], outline, is_box=True)
    if kind == "ellipse":
        x, y, wide, tall = numbers((value["x"], value["y"], value["radiusX"], value["radiusY"]), 4)
        return Shape(labels[0], Oval(x * across, y * down, wide * across, tall * down, turned))
    if kind == "brush" and value.get("format", "rle") == "rle":
        return Shape(labels[0], Bitmap(0, 0, decode_brush(value["rle"], size)))
    raise ValueError(f"expected a shape of {', '.join(_KINDS)}, got {entry['type']!r}; draw it as one of them")


def decode_brush(packed: Sequence[int], size: tuple[int, int]) -> Mask:
    """What a brush has painted, from Label Studio's run lengths (rle-pack) of an image with opacity.

    A head of 53 bits: the number of values (32), bits of a value - 1 (5), bits of four kinds of lengths - 1 (4 each).
    Then runs: a bit that says whether all values of the run are one, the kind of its length (2), its length - 1, and
    the value or the values.

    Args:
        packed: Bytes.
        size: (height, width) of the image.

    Returns:
        (height, width) bool: opacity above 0.

    Raises:
        ValueError: Another number of values than four a pixel, or bytes that end too early.
    """
    data = np.asarray(packed)
    if data.ndim != 1 or data.dtype.kind not in "iu" or (data.size and not 0 <= data.min() <= data.max() <= 255):
        raise ValueError("expected a brush as a list of bytes, got another list")
    bits = np.unpackbits(data.astype(np.uint8))
    text = bits.tobytes().translate(bytes([48, 49, *range(2, 256)])).decode("ascii")
    at = 0

    def take(count: int) -> int:
        nonlocal at
        if at + count > len(text):
            raise ValueError("expected all runs of a brush, got bytes that end before them; export it again")
        at += count
        return int(text[at - count : at], 2)

    total, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1]:
        raise ValueError(f"expected a brush of 4 values for {size[0]} × {size[1]} pixels, got {total} values")
    values = np.zeros(total, np.uint32)
    done = 0
    while done < total:
        is_run = take(1)
        count = take(lengths[take(2)]) + 1
        if done + count > total:
            raise ValueError("expected runs that fill the image, got longer ones; export it again")
        values[done : done + count] = take(word) if is_run else [take(word) for _ in range(count)]
        done += count
    opaque: Mask = values.reshape(*size, 4)[..., 3] > 0
    return opaque
