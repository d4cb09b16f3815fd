"""Which files of a folder are images: one walk for all data modules and commands, names that match in any Unicode form.

Links are followed. Files that other programs leave beside images are nobody's: hidden ones, side files of rasters,
caches of file managers. All else that is left out is said.
"""

from __future__ import annotations

import logging
import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from castvision.data.reading.opening import IMAGE_SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

logger = logging.getLogger(__name__)

STORE = ".zarr"
ALL_SUFFIXES = IMAGE_SUFFIXES | {
    ".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", STORE,
    ".jp2", ".j2k", ".vrt", ".img", ".asc", ".hgt", ".dem", ".bil", ".ntf",
}  # fmt: skip
"""Photographs, and what is read tile by tile: slides, stores and rasters."""
_STORE_FILES = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
_OF_PROGRAMS = frozenset({
    "__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r",
})  # fmt: skip
_SIDE_SUFFIXES = frozenset({
    ".xml", ".tfw", ".tifw", ".tiffw", ".jgw", ".jpgw", ".pgw", ".pngw", ".wld", ".ovr", ".msk", ".rrd", ".prj", ".hdr",
    ".dbf", ".shp", ".shx", ".cpg", ".qgz", ".qmd", ".geojson", ".gpkg", ".json", ".csv", ".txt", ".md", ".html",
    ".yaml", ".yml", ".log", ".pdf", ".db", ".ini", ".lnk", ".part", ".tmp", ".bak", ".lock", ".crdownload", ".dat",
})  # fmt: skip


def is_stray(name: str, *, is_folder: bool = False) -> bool:
    """Whether a file or folder is what other programs leave beside images: nobody's image and nobody's class.

    Args:
        name: Of the file or folder alone.
        is_folder: A folder's ending says nothing: ``v1.txt`` may be a class.
    """
    if name.startswith(".") or name.casefold() in _OF_PROGRAMS:
        return True
    return not is_folder and (name.endswith("~") or Path(name).suffix.lower() in _SIDE_SUFFIXES)


def is_store(path: Path) -> bool:
    """Whether a folder is one image: a zarr store, by its name or by what lies in it."""
    return path.is_dir() and (path.suffix.lower() == STORE or any((path / name).is_file() for name in _STORE_FILES))


def walk_images(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> list[Path]:
    """The images of a folder and of the folders in it, linked ones too.

    A link that leads nowhere is listed, so that it is an error where it is opened and not an image less.

    Args:
        folder: Where to look.
        suffixes: Of images, lower case; a folder that is a zarr store is an image if ``.zarr`` is among them.

    Returns:
        Paths below ``folder``, sorted.

    Raises:
        OSError: A folder that is missing or may not be read.
    """
    found: list[Path] = []
    left_out: list[Path] = []
    _walk(folder, suffixes, frozenset(), found, left_out)
    if left_out:
        endings = " ".join(sorted({path.suffix.lower() or "none" for path in left_out})[:8])
        logger.warning(
            "%s: left out %d file(s) whose endings (%s) are no image's here, such as %s; convert or rename what is one",
            folder, len(left_out), endings, left_out[0].name,
        )  # fmt: skip
    return sorted(found)


def _walk(
    folder: Path, suffixes: Collection[str], above: frozenset[tuple[int, int]], found: list[Path], left_out: list[Path]
) -> None:
    status = folder.stat()
    here = status.st_dev, status.st_ino
    if here in above:
        logger.warning("%s leads back to a folder above it, whose images are listed already", folder)
        return
    with os.scandir(folder) as entries:
        inside = list(entries)
    for entry in inside:
        path, is_folder = folder / entry.name, entry.is_dir()
        if is_stray(entry.name, is_folder=is_folder):
            continue
        if is_folder and not is_store(path):
            _walk(path, suffixes, above | {here}, found, left_out)
            continue
        suffix = STORE if is_folder else path.suffix.lower()
        leads_nowhere = entry.is_symlink() and not path.exists()
        if (suffix in suffixes and (is_folder or entry.is_file())) or (leads_nowhere and suffix in {*suffixes, ""}):
            found.append(path)
        else:
            left_out.append(path)


def nfc(text: str) -> str:
    """A name in one Unicode form: Windows and Linux compose an umlaut, a Mac writes letter and dots."""
    return unicodedata.normalize("NFC", text)


def name_of(path: Path) -> str:
    """By which an image and its mask match: folders and name without endings such as ``.tif`` and ``.ome.tif``.

    Args:
        path: Relative to the folder of the images or of the masks.

    Returns:
        "/" between folders, composed Unicode.
    """
    name = nfc(path.with_suffix("").as_posix())
    return name[:-4] if name.lower().endswith(".ome") else name


def images_by_name(folder: Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> dict[str, Path]:
    """The images of a folder and of those in it, by `name_of`, sorted by it.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: Two files of one name.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder {str(folder)!r}, found none")
    found: dict[str, Path] = {}
    for path in walk_images(folder, suffixes):
        name = name_of(path.relative_to(folder))
        if name in found:
            raise ValueError(f"expected one file of a name, got {str(found[name])!r} and {str(path)!r}; keep one")
        found[name] = path
    return {name: found[name] for name in sorted(found)}


def first_file(places: Sequence[Path]) -> Path | None:
    """The first of some paths that is a file, as it is spelt or, if none is, in another Unicode form."""
    exact = next((path for path in places if path.is_file()), None)
    return exact or next((path for path in as_on_disk(places) if path.is_file()), None)


def as_on_disk(paths: Sequence[Path]) -> list[Path]:
    """Paths as the file system spells them, where a list has another Unicode form of a name.

    Args:
        paths: As listed.

    Returns:
        Those that exist as they are; of others the file of the same composed name, if there is one.
    """
    spelt: dict[Path, dict[str, str]] = {}

    def on_disk(path: Path) -> Path:
        if os.path.lexists(path) or path.parent == path:
            return path
        parent = on_disk(path.parent)
        if parent not in spelt:
            names = sorted(os.listdir(parent)) if parent.is_dir() else []
            spelt[parent] = {nfc(name): name for name in names}
        name = spelt[parent].get(nfc(path.name))
        return path if name is None else parent / name

    return [on_disk(path) for path in paths]
