"""Which images to read and where to write: a sorted walk over folders, an output folder that never overwrites."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, get_args

from castvision.data.reading import folders
from castvision.data.reading.folders import is_store, name_of, nfc, walk_images
from castvision.data.reading.opening import IMAGE_SUFFIXES
from castvision.files import draft, part_of
from castvision.inference.folder_lock import FolderLock, lock_of
from castvision.inference.maps import Kind
from castvision.inference.sinks import FileSink

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

ALL_SUFFIXES = folders.ALL_SUFFIXES
PARTS = "parts"
"""The folder, in that of the output, of what several processes have not joined yet."""
_LONGEST_NAME = 255 - len(".geojson")
"""Bytes of a file's name, before the longest ending a result has."""


def expand_patterns(sources: Sequence[str]) -> list[Path]:
    """Replace patterns (``*``, ``?``, ``**``, ``[...]``) that the shell left alone; names that exist stay.

    Args:
        sources: Files, folders and patterns.

    Returns:
        Files and folders, a pattern's in sorted order.

    Raises:
        FileNotFoundError: A pattern that fits nothing.
    """
    found: list[Path] = []
    for source in sources:
        if os.path.lexists(source) or not glob.has_magic(source):
            found.append(Path(source))
            continue
        matches = sorted(map(Path, glob.glob(source, recursive=True)), key=_in_natural_order)
        if not matches:
            raise FileNotFoundError(f"no file fits the pattern {source!r}; check it")
        found += matches
    return found


def find_images(
    sources: Sequence[str | Path], *, outside: Path | None = None, suffixes: Collection[str] = IMAGE_SUFFIXES
) -> dict[Path, str]:
    """List the images named, and those in the folders named.

    Folders are walked recursively in sorted order, numbers compared as numbers, links followed; see `walk_images`.

    Args:
        sources: Files and folders. A file is taken whatever its name; of a folder's files those with an image's suffix.
        outside: A folder whose content is left out (the output, when it lies inside a source).
        suffixes: Of images, lower case. A folder that ends in ``.zarr`` is an image.

    Returns:
        Each image and the relative name (without suffix, "/" between folders) its results go under; names are unique.

    Raises:
        FileNotFoundError: A source that does not exist.
        ValueError: No source, or no image in any.
    """
    found: dict[Path, str] = {}
    taken: set[str] = set()
    for source in map(Path, sources):
        if not source.exists():
            raise FileNotFoundError(f"no such image or folder: {str(source)!r}; check the path")
        for path, name in _images_of(source, outside, suffixes):
            if path not in found:
                found[path] = _unique(_short(name), path.suffix, taken)
                taken.add(nfc(found[path]).casefold())
    if not found:
        names = ", ".join(str(source) for source in sources) or "nothing"
        raise ValueError(
            f"no image ({' '.join(sorted(suffixes))}) in {names}; name an image or a folder that holds some"
        )
    return found


def _images_of(source: Path, outside: Path | None, suffixes: Collection[str]) -> Iterable[tuple[Path, str]]:
    if not source.is_dir() or is_store(source):
        return [(source, source.stem)]
    shut = None if outside is None else outside.resolve()
    inside = []
    for path in sorted(walk_images(source, suffixes), key=_in_natural_order):
        relative = path.relative_to(source)
        if shut is None or not path.resolve().is_relative_to(shut):
            inside.append((path, relative.with_suffix("").as_posix()))
    return inside


def _in_natural_order(path: Path) -> tuple[list[tuple[bool, int, str]], Path]:
    """Numbers in names compare as numbers: image_2 comes before image_10; the path itself decides between equals."""
    pieces = re.split(r"(\d+)", path.as_posix().casefold())
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces], path


def _short(name: str) -> str:
    """The name, or its beginning and a digest where results of this name would be too long for a file system."""
    folder, _, last = name.rpartition("/")
    stored = os.fsencode(last)
    if len(stored) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(stored).hexdigest()[:12]
    last = f"{stored[: _LONGEST_NAME - 40].decode('utf-8', 'ignore')}-{digest}"
    return f"{folder}/{last}" if folder else last


def _unique(name: str, suffix: str, taken: set[str]) -> str:
    if nfc(name).casefold() not in taken:
        return name
    name = f"{name}_{suffix.lstrip('.').lower()}" if suffix else name
    number, candidate = 2, name
    while nfc(candidate).casefold() in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def finished_record(folder: Path, name: str, image: Path, mask: Path | None = None) -> dict[str, Any] | None:
    """What an earlier run in the same folder wrote of an image.

    Args:
        folder: Of the run.
        name: What the image's files are called there; its record was written last of them.
        image: The image.
        mask: Where to work on it; None = everywhere.

    Returns:
        The record; None if the image was not finished, it or its mask has changed since, or some of its files are gone.

    Raises:
        ValueError: The record, and so all files of this name, are another image's.
    """
    stored = folder / "records" / f"{name}.json"
    if not stored.is_file():
        return None
    record: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8"))
    if Path(record["image"]).absolute() != image.absolute():
        raise ValueError(
            f"expected the images of the run that is resumed, got {str(image)!r}, whose results would replace those of "
            f"{record['image']!r}; name the same images in the same order, or another output folder"
        )
    changed = max(path.stat().st_mtime_ns for path in (image, mask) if path is not None)
    is_older = stored.stat().st_mtime_ns < changed
    return None if is_older or not all((folder / file).exists() for file in record["files"]) else record


def forget(folder: Path, names: Iterable[str]) -> None:
    """Take away what an earlier run left of these images that would pass for work of a new one when it is resumed.

    Args:
        folder: Of the run.
        names: What the images' files are called there.
    """
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    for name in names:
        (folder / "records" / f"{name}.json").unlink(missing_ok=True)
        for kind in get_args(Kind):
            FileSink(part_of(folder / "masks" / f"{name}.{kind}")).discard()


def match_masks(mask: Path | None, images: dict[Path, str]) -> dict[Path, Path]:
    """The mask of each image: one file for one image, or those of a folder by name.

    Args:
        mask: A file, a folder, or None.
        images: Each image and its name, as `find_images` gives them.

    Returns:
        For each image its mask; empty without any.

    Raises:
        FileNotFoundError: No such file or folder, or an image without a mask in it.
        ValueError: One file for several images, or several masks of one name.
    """
    if mask is None:
        return {}
    if not mask.exists():
        raise FileNotFoundError(f"no such mask or folder of masks: {str(mask)!r}; check the path")
    if not mask.is_dir() or is_store(mask):
        if len(images) > 1:
            raise ValueError(f"expected a folder of masks for {len(images)} images, got one file: {str(mask)!r}")
        return dict.fromkeys(images, mask)
    by_name: dict[str, list[Path]] = {}
    for path in walk_images(mask, ALL_SUFFIXES):
        by_name.setdefault(name_of(path.relative_to(mask)), []).append(path)
    # a name of results may have got a number or a digest: the image's own stands in its path
    own = {path: name_of(Path(PurePosixPath(name).parent / path.name)) for path, name in images.items()}
    missing = [str(path) for path, name in own.items() if name not in by_name]
    if missing:
        raise FileNotFoundError(f"no mask in {str(mask)!r} for {', '.join(missing[:3])}; give each its image's name")
    images_of = Counter(own.values())
    chosen: dict[Path, Path] = {}
    used: set[Path] = set()
    for path, name in own.items():
        alike = by_name[name]
        if len(alike) > 1 or images_of[name] > 1:  # 1.jpg and 1.png: the ending tells them apart, or nothing does
            alike = [one for one in alike if one.suffix.lower() == path.suffix.lower()]
        if len(alike) != 1 or alike[0] in used:
            raise ValueError(
                f"expected one mask for each image, got {images_of[name]} image(s) called {name!r}, such as "
                f"{str(path)!r}, for {', '.join(str(one) for one in by_name[name][:3])}; give each image and its mask "
                "a name of their own"
            )
        chosen[path] = alike[0]
        used.add(alike[0])
    return chosen


class OutputFolder:
    """A folder for one run's files. Files of earlier runs, or of a user's, are never replaced unless allowed.

    Args:
        path: Made at the first write.
        overwrite: Allow a folder that is not empty; files of the same names are replaced, others stay.
        protected: Files never replaced, whatever ``overwrite`` says (the inputs).
        is_lent: The folder is another process's, which has its lock and has handed out this part of its work.

    Raises:
        FileExistsError: The folder holds something and ``overwrite`` is false.
        NotADirectoryError: A file stands there.
        BlockingIOError: Another process writes into the folder; it is refused from the first file on.
    """

    def __init__(
        self, path: str | Path, *, overwrite: bool = False, protected: Iterable[Path] = (), is_lent: bool = False
    ) -> None:
        self.path = Path(path)
        self._is_lent = is_lent
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(
                f"expected a folder for the output, got a file: {str(path)!r}; name another folder"
            )
        self._lock: FolderLock | None = lock_of(self.path) if self.path.is_dir() and not is_lent else None
        if self.path.is_dir() and any(self.path.iterdir()) and not overwrite:
            raise FileExistsError(f"output folder is not empty: {str(path)!r}; name a new one or pass --overwrite")
        self._overwrite = overwrite
        self._protected = {path.resolve() for path in protected}
        self._written: set[Path] = set()

    def write(self, name: str, data: bytes) -> Path:
        """Write one file whole or not at all.

        Args:
            name: Relative to the folder, "/" between folders.
            data: Its bytes.

        Returns:
            The file's path.

        Raises:
            FileExistsError: A file of that name appeared that this run did not write, and overwriting is not allowed.
        """
        with self.draft(name) as temporary:
            temporary.write_bytes(data)
        return self.path / name

    def write_text(self, name: str, text: str) -> Path:
        """Write a text in UTF-8; bytes of a file's name that are none are escaped as in JSON.

        Args:
            name: See `write`.
            text: With names of files, whatever they are.

        Returns:
            The file's path.

        Raises:
            FileExistsError: See `write`.
        """
        return self.write(name, text.encode("utf-8", "backslashreplace"))

    @contextmanager
    def draft(self, name: str) -> Iterator[Path]:
        """A temporary file for a file of this folder; see `castvision.files.draft`.

        Args:
            name: Relative to the folder, "/" between folders.

        Yields:
            The temporary file's path.

        Raises:
            FileExistsError: See `write`.
            OSError: Of the block; it names the file.
        """
        if self._lock is None and not self._is_lent:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_of(self.path)
        target = self.path / name
        if target.exists() and target not in self._written and not self._overwrite:
            raise FileExistsError(f"will not replace {str(target)!r}, which this run did not write; pass --overwrite")
        if target.resolve() in self._protected:
            raise FileExistsError(
                f"will not replace {str(target)!r}, an image of the input; name another output folder"
            )
        with draft(target) as temporary:
            yield temporary
        self._written.add(target)
