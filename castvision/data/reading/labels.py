"""Masks as files to class numbers: palettes keep their indices, label maps translate, unknown labels are refused."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Self

import numpy as np

from castvision.data.reading.folders import nfc
from castvision.data.reading.opening import open_image, open_mask
from castvision.data.reading.pixels import Mask, Pixels, is_missing
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from castvision.data.reading.reader import ImageReader

_MAX_CLASSES = 255
_HEX = re.compile(r"#?([0-9a-fA-F]{6})$")


class LabelMap:
    """From the labels in mask files to classes 0..num_classes-1, and 255 for ignored pixels.

    Args:
        class_names: In the order of the classes.
        mapping: From a label (a number, or a colour ``"#rrggbb"`` or ``"r, g, b"``) to a class (its number or name) or
            ``"ignore"``; all labels in the masks must stand in it, 255 too. None: labels are class numbers, 255 is
            ignored.

    Attributes:
        mapping: As given, in plain values for a checkpoint: labels as text, classes by number or "ignore"; None if
            none was given.

    Raises:
        ValueError: No or more than 255 classes, names that are no text, labels that are neither numbers nor colours, or
            classes that are none.
    """

    mapping: dict[str, int | str] | None = None

    def __init__(self, class_names: Sequence[str], mapping: Mapping[int | str, int | str] | None = None) -> None:
        if not 1 <= len(class_names) <= _MAX_CLASSES:
            raise ValueError(f"expected 1..{_MAX_CLASSES} class names, got {len(class_names)}")
        check_class_names(class_names)
        self.class_names = list(class_names)
        pairs = {label: label for label in (*range(len(class_names)), IGNORED)}
        self.has_colours = False
        if mapping is not None:
            kinds = {_is_colour(label) for label in mapping}
            if len(kinds) != 1:
                raise ValueError(f"expected a label map of numbers or of colours ('#rrggbb'), got {dict(mapping)}")
            self.has_colours = kinds == {True}
            pairs = {_parse_label(label): self._parse_class(value) for label, value in mapping.items()}
            if len(pairs) < len(mapping):
                raise ValueError(f"expected each label once in the label map, got {dict(mapping)}")
            self.mapping = {
                f"#{label:06x}" if self.has_colours else str(label): "ignore" if value == IGNORED else value
                for label, value in pairs.items()
            }
        self._labels = np.array(sorted(pairs), dtype=np.int64)
        self._classes = np.array([pairs[label] for label in self._labels.tolist()], dtype=np.uint8)

    def _parse_class(self, value: int | str) -> int:
        _refuse_bool(value, "label map")
        if value in ("ignore", IGNORED):
            return IGNORED
        if isinstance(value, int) and 0 <= value < len(self.class_names):
            return value
        own = [nfc(name) for name in self.class_names]
        if isinstance(value, str) and nfc(value) in own:
            return own.index(nfc(value))
        names = ", ".join(self.class_names[:8])
        raise ValueError(
            f"expected a class 0..{len(self.class_names) - 1}, its name ({names}) or 'ignore', got {value!r}"
        )

    def read(self, path: str | Path) -> Pixels:
        """Read one mask.

        Args:
            path: See `open`.

        Returns:
            (height, width) uint8, classes and 255.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a mask, or labels without a class; the message names the file and the labels.
        """
        with self.open(path) as reader:
            return self.read_all(reader)

    def read_all(self, mask: ImageReader) -> Pixels:
        """Read a mask that is open; see `read`."""
        return self.apply(mask.read_masked(0, 0, mask.height, mask.width), mask.name, mask.nodata)

    def open(self, path: str | Path, *, cache_bytes: int = 64 << 20) -> ImageReader:
        """Open a mask of any size; `apply` makes classes of what is read.

        Args:
            path: Anything `castvision.data.open_mask` opens; colours if the map has colours.
            cache_bytes: Decoded tiles a TIFF's reader may hold.

        Returns:
            The reader of (height, width, 1) numbers or (height, width, 3) colours, without opacity.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Not a mask, or damaged; the message names the file.
        """
        if self.has_colours:
            return open_image(path, alpha="drop", cache_bytes=cache_bytes)
        return open_mask(path, cache_bytes=cache_bytes)

    def apply(self, pixels: Pixels, name: str, nodata: float | None = None) -> Pixels:
        """Translate one mask.

        Args:
            pixels: (height, width) or (height, width, channels) integers; those marked as missing are ignored.
            name: Of the mask, for messages.
            nodata: The label of pixels without one, as the file states it: ignored.

        Returns:
            (height, width) uint8, classes and 255.

        Raises:
            ValueError: See `read`; also a nodata value that is the label of a class.
        """
        labels = self._plane(pixels if pixels.ndim == 3 else pixels[..., None], name)
        is_marked, labels = np.ma.getmaskarray(labels).copy(), np.ma.getdata(labels)
        if labels.dtype == np.uint8:
            table, known = self._translate(np.arange(256))
            mask, is_known = table[labels], known[labels]
        else:
            mask, is_known = self._translate(labels)
        if nodata is not None:
            stated = nodata * 0x010101 if self.has_colours else nodata  # that of all three channels is a grey
            is_nodata = is_missing(labels, stated)
            if (is_nodata & is_known & (mask != IGNORED)).any():
                told = f"'#{int(stated):06x}'" if self.has_colours else nodata
                raise nodata_of_a_class(name, told, self.class_names[int(mask[is_nodata][0])])
            is_marked |= is_nodata
        if is_marked.any():
            mask, is_known = np.where(is_marked, np.uint8(IGNORED), mask), is_known | is_marked
        if not is_known.all():
            raise ValueError(self._explain(np.unique(labels[~is_known]), name))
        return mask

    def _plane(self, pixels: Pixels, name: str) -> Pixels:
        """(height, width) integers; colours are packed into one number."""
        if pixels.dtype.kind not in "bui":
            raise ValueError(
                f"expected whole numbers in the mask {name!r}, got {pixels.dtype}; save labels as integers"
            )
        if self.has_colours:
            if pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
                raise ValueError(
                    f"expected 8-bit RGB in the mask {name!r} (the label map has colours), got {pixels.shape[-1]} "
                    f"channel(s) of {pixels.dtype}; give numbers in the label map"
                )
            red, green, blue = np.moveaxis(np.ma.getdata(pixels).astype(np.int64), -1, 0)
            is_marked = np.ma.getmaskarray(pixels).all(axis=-1)  # pure red has nodata 0 in two of its channels
            return np.ma.masked_array((red << 16) + (green << 8) + blue, mask=is_marked)
        if pixels.shape[-1] > 1 and (pixels != pixels[..., :1]).any():
            colours = np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)[:8]
            found = ", ".join(str(tuple(colour)) for colour in colours.tolist())
            raise ValueError(
                f"expected one number a pixel in the mask {name!r}, got colours {found}; "
                "give a label map from colours to classes, such as label_map: {'#ff0000': 1}"
            )
        return pixels[..., 0]

    def _translate(self, labels: Pixels) -> tuple[Pixels, Pixels]:
        positions = np.searchsorted(self._labels, labels).clip(max=len(self._labels) - 1)
        return self._classes[positions], self._labels[positions] == labels

    def _explain(self, unknown: Pixels, name: str) -> str:
        shown = [f"#{label:06x}" if self.has_colours else str(label) for label in unknown.tolist()]
        found = ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
        known = [f"#{label:06x}" if self.has_colours else str(label) for label in self._labels.tolist()]
        wanted = ", ".join(known[:16]) + (", …" if len(known) > 16 else "")
        lossy = "; JPEG changes labels: save masks as PNG" if name.lower().endswith((".jpg", ".jpeg")) else ""
        return (
            f"expected labels {wanted} in the mask {name!r} for {len(self.class_names)} classes, got {found}; "
            f"translate them by label_map, such as {{{shown[0]!r}: ignore}}{lossy}"
        )


class ClassReader:
    """The classes of a mask of any size, by windows; a context manager.

    Args:
        path: See `LabelMap.open`.
        labels: What the mask's labels mean.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a mask, or damaged; the message names the file.
    """

    def __init__(self, path: str | Path, labels: LabelMap) -> None:
        self._reader, self._labels = labels.open(path), labels
        self.name, self.height, self.width = self._reader.name, self._reader.height, self._reader.width
        self.georeference = self._reader.georeference
        self.nodata: float | None = None  # pixels of the file's own value come as ignored

    def read(self, y: int, x: int, height: int, width: int) -> Pixels:
        """(height, width, 1) uint8: classes, and 255 for ignored; see `ImageReader.read` and `LabelMap.apply`."""
        stored = self._reader.read_masked(y, x, height, width)
        return self._labels.apply(stored, self.name, self._reader.nodata)[..., None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._reader.close()


def check_class_names(class_names: Sequence[str]) -> None:
    """Refuse names that are no text, such as the False and True that YAML makes of no and yes.

    Raises:
        ValueError: It says how to write them.
    """
    wrong = [name for name in class_names if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise ValueError(
            f"expected class names as text, got {wrong[0]!r} in {list(class_names)}; put names in quotes, in YAML as "
            "on the command line: class_names: ['no', 'yes']"
        )


def read_class_names(path: Path) -> list[str] | None:
    """The names in a ``classes.txt``, one a line, in the order of the labels; None without the file.

    Raises:
        ValueError: Bytes that are no UTF-8.
    """
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text (UTF-8) in {str(path)!r}, got other bytes ({error}); save it again") from None
    return [nfc(line.strip()) for line in text.splitlines() if line.strip()]


def classes_near(folder: Path) -> tuple[list[str], str] | None:
    """The names beside masks and their file: in the masks' own folder, in DIR of ``DIR/masks`` or of ``DIR/val/masks``.

    Args:
        folder: In which masks lie.

    Returns:
        None without such a file.

    Raises:
        ValueError: See `read_class_names`.
    """
    own = folder.absolute()
    for place in (own, *own.parents[:2]):
        names = read_class_names(place / "classes.txt")
        if names:
            return names, str(place / "classes.txt")
    return None


def is_background(name: str) -> bool:
    """Whether a class's name says that nothing is there."""
    return name.strip().casefold() in {"background", "other", "none", "unlabelled", "unlabeled", "void"}


def numbered(label_map: Mapping[int | str, int | str] | None) -> list[str] | None:
    """Names by `names_up_to` for the classes of a label map that names none; None without a map.

    Raises:
        ValueError: The map has names.
    """
    if label_map is None:
        return None
    numbers = [value for value in label_map.values() if value not in ("ignore", IGNORED)]
    if not numbers or not all(isinstance(value, int) for value in numbers):
        raise ValueError(f"expected class_names (or classes.txt) for the names in {label_map=}, got none")
    return names_up_to(max(int(value) for value in numbers))


def names_up_to(largest: int) -> list[str]:
    """Names of classes that nobody named: background and object of two, else a number for each label."""
    return ["background", "object"] if largest <= 1 else [f"class {label}" for label in range(largest + 1)]


def map_by_names(
    listed: Sequence[str], class_names: Sequence[str], remembered: Mapping[str, int | str] | None, where: str
) -> dict[int | str, int | str] | None:
    """What the labels of masks mean for a model whose classes may have another order than the list beside the masks.

    Args:
        listed: The masks' classes, in the order of their labels.
        class_names: The model's.
        remembered: The label map it was trained with.
        where: The list, for messages.

    Returns:
        A label map; None where the classes agree.

    Raises:
        ValueError: Other names, or another order of labels that a remembered map translates already.
    """
    listed, class_names = ([nfc(name) for name in names] for names in (listed, class_names))
    if listed == class_names:
        return None
    told = f"{where!r} names {', '.join(listed[:8])}, the model's classes are {', '.join(class_names[:8])}"
    if sorted(listed) != sorted(class_names) or len({*listed}) < len(listed) or remembered is not None:
        raise ValueError(f"expected masks of the model's classes: {told}; say by --label-map what the labels mean")
    found: dict[int | str, int | str] = {label: class_names.index(name) for label, name in enumerate(listed)}
    return {**found, IGNORED: "ignore"}


def check_classes_found(counts: Pixels, class_names: Sequence[str], where: str) -> list[str]:
    """Refuse masks whose only difference is between a class and what is ignored: masks of 0 and 255, as a rule.

    Args:
        counts: (256,) pixels of each class, the last of what is ignored.
        class_names: Of the classes.
        where: Which masks, for the message.

    Returns:
        Names of the classes without a pixel.

    Raises:
        ValueError: Ignored pixels, and fewer than two classes beside them; it says what to give.
    """
    present = np.flatnonzero(counts[:IGNORED])
    if len(class_names) > 1 and counts[IGNORED] and len(present) < 2:
        found = ", ".join(f"{label} ({class_names[label]})" for label in present.tolist()) or "none"
        raise ValueError(
            f"expected two classes or more in {where}, found {found} and ignored pixels (255); if 255 is a class in "
            "the files, say so: label_map: {0: 0, 255: 1}"
        )
    return [name for label, name in enumerate(class_names) if label not in present]


def _refuse_bool(value: int | str, what: str) -> None:
    if isinstance(value, bool):
        raise ValueError(
            f"expected numbers or text in the {what}, got {value!r}; put names such as 'no' and 'yes' in quotes"
        )


def _is_colour(label: int | str) -> bool:
    return isinstance(label, str) and not label.strip().lstrip("-").isdecimal()


def _parse_label(label: int | str) -> int:
    _refuse_bool(label, "label map")
    if not _is_colour(label):
        return int(label)
    text = str(label).strip()
    if match := _HEX.match(text):
        return int(match[1], 16)
    parts = [part.strip() for part in text.strip("()[]").split(",")]
    if len(parts) == 3 and all(part.isdecimal() and int(part) < 256 for part in parts):
        red, green, blue = map(int, parts)
        return (red << 16) + (green << 8) + blue
    raise ValueError(f"expected a colour such as '#ff8000' or '255, 128, 0' in the label map, got {label!r}")


def nodata_of_a_class(name: str, nodata: float | str | None, label: int | str) -> ValueError:
    """The error for a mask that states the label of a class to be no label."""
    return ValueError(
        f"expected a nodata value that is no class in the mask {name!r}, got nodata {nodata}, the label of class "
        f"{label!r}: its pixels would be ignored; if they are the class, take the statement out of the file "
        f"(gdal_edit.py -unsetnodata {name!r}), if not, give a label map that says so (label_map: {{{nodata}: ignore}})"
    )


def mark_ignored(
    labels: Pixels, nodata: float | None, num_classes: int | None, name: str = "mask"
) -> tuple[Pixels, Mask]:
    """What the labels of a mask without a label map mean: class numbers, and 255 or the mask's nodata for ignored.

    Args:
        labels: (height, width) whole numbers; those marked as missing are ignored.
        nodata: The mask's value for missing pixels, if it states one.
        num_classes: Labels are below it; None for any up to 254.
        name: Of the mask, for messages.

    Returns:
        The labels with 255 for all that is ignored, and which of them are no class, both (height, width).

    Raises:
        ValueError: A nodata value that is the label of one of ``num_classes`` classes.
    """
    is_ignored, labels = np.ma.getmaskarray(labels), np.ma.getdata(labels)
    if nodata is not None:
        is_nodata = is_missing(labels, nodata)
        if num_classes is not None and 0 <= nodata < num_classes and is_nodata.any():
            raise nodata_of_a_class(name, nodata, int(nodata))
        is_ignored |= is_nodata
    if is_ignored.any():
        labels = np.where(is_ignored, np.uint8(IGNORED), labels)  # 8 bits with a sign have no 255
    is_unknown = (labels >= (IGNORED if num_classes is None else num_classes)) & (labels != IGNORED)
    if labels.dtype.kind == "i":
        is_unknown |= labels < 0
    return labels, is_unknown
