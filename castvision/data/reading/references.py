"""Files that point at other files: followed inside their own folder, and never to a network.

GDAL decides by content what a file is, so that a ``.png`` may hold the description of a virtual raster, and such a
description may name any file of the machine, or an address.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

_HEAD = 4096
_LARGEST = 1 << 24
"""Bytes of a description; a mosaic of a hundred thousand files has as many."""

_SOURCES = ("SourceFilename", "SourceDataset", "DSName")


def check_references(path: Path) -> None:
    """Refuse a file that points where it may not, before GDAL opens it.

    Args:
        path: Any raster.

    Raises:
        ValueError: A description under another format's name, one of a service on a network, or one that names a file
            outside its folder; it says which.
    """
    head = _begin(path)
    if not head.startswith(b"<"):
        return
    if path.suffix.lower() != ".vrt":
        raise ValueError(
            f"expected an image, got a text that describes one ({head[:24]!r}…), which may point at other "
            "files; if it is a virtual raster, name it .vrt"
        )
    _check_description(path, path.resolve().parent, set())


def _begin(path: Path) -> bytes:
    """The first bytes, without white space and the mark of an encoding."""
    with path.open("rb") as file:
        return file.read(_HEAD).lstrip(b"\xef\xbb\xbf \t\r\n")


def _check_description(path: Path, folder: Path, seen: set[Path]) -> None:
    """All that a description names lies in ``folder`` or below it; descriptions that it names, too."""
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    for element in _parse(path).iter():
        name = (element.text or "").strip()
        if element.tag.startswith("PixelFunction") and element.tag != "PixelFunctionType":
            raise ValueError(f"expected a virtual raster without code in {str(path)!r}, got <{element.tag}>")
        if element.tag not in _SOURCES or not name:
            continue
        is_relative = element.get("relativeToVRT") == "1" or not Path(name).is_absolute()
        source = path.parent / name if is_relative else Path(name)
        if name.startswith(("/vsi", "<")) or not source.is_file() or not source.resolve().is_relative_to(folder):
            raise ValueError(
                f"expected {str(path)!r} to name files in its own folder or below it, got {name!r}; move them there, "
                "or make one file of it: gdal_translate IN.vrt OUT.tif"
            )
        if _begin(source).startswith(b"<"):
            _check_description(source, folder, seen)


def _parse(path: Path) -> ElementTree.Element:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"expected a virtual raster of at most {_LARGEST >> 20} MiB, got {str(path)!r}")
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError(f"expected a virtual raster without a DOCTYPE, got one in {str(path)!r}")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"expected a virtual raster's XML in {str(path)!r}: {error}") from error
    if root.tag != "VRTDataset":
        raise ValueError(f"expected <VRTDataset> in {str(path)!r}, got <{root.tag}>")
    return root
