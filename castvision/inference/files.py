"""Which images to read and where to write: a sorted walk over folders, an output folder that never overwrites."""

from __future__ import annotations

import glob
import os
import re
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from castvision.data.reading.opening import IMAGE_SUFFIXES
from castvision.files import draft

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

_STORE = ".zarr"
ALL_SUFFIXES = IMAGE_SUFFIXES | {
    ".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", _STORE, ".jp2", ".vrt", ".img",
}  # fmt: skip
"""Photographs, and what is read tile by tile: slides, stores and rasters."""


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

    Folders are walked recursively in sorted order, numbers compared as numbers; hidden files are left out.

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
                found[path] = _unique(name, path.suffix, taken)
                taken.add(found[path].casefold())
    if not found:
        names = ", ".join(str(source) for source in sources) or "nothing"
        raise ValueError(
            f"no image ({' '.join(sorted(suffixes))}) in {names}; name an image or a folder that holds some"
        )
    return found


def _images_of(source: Path, outside: Path | None, suffixes: Collection[str]) -> Iterable[tuple[Path, str]]:
    if not source.is_dir() or source.suffix == _STORE:
        return [(source, source.stem)]
    shut = None if outside is None else outside.resolve()
    inside = []
    for path in sorted(source.rglob("*"), key=_in_natural_order):
        relative = path.relative_to(source)
        if path.suffix.lower() not in suffixes or any(part.startswith(".") for part in relative.parts):
            continue
        if any(part.endswith(_STORE) for part in relative.parts[:-1]) or not (path.is_file() or path.suffix == _STORE):
            continue
        if shut is None or not path.resolve().is_relative_to(shut):
            inside.append((path, relative.with_suffix("").as_posix()))
    return inside


def _in_natural_order(path: Path) -> tuple[list[tuple[bool, int, str]], Path]:
    """Numbers in names compare as numbers: image_2 comes before image_10; the path itself decides between equals."""
    pieces = re.split(r"(\d+)", path.as_posix().casefold())
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces], path


def _unique(name: str, suffix: str, taken: set[str]) -> str:
    if name.casefold() not in taken:
        return name
    name = f"{name}_{suffix.lstrip('.').lower()}" if suffix else name
    number, candidate = 2, name
    while candidate.casefold() in taken:
        candidate, number = f"{name}-{number}", number + 1
    return candidate


def match_masks(mask: Path | None, images: dict[Path, str]) -> dict[Path, Path]:
    """The mask of each image: one file for one image, or those of a folder by name.

    Args:
        mask: A file, a folder, or None.
        images: Each image and its name, as `find_images` gives them.

    Returns:
        For each image its mask; empty without any.

    Raises:
        FileNotFoundError: No such file or folder, or an image without a mask in it.
        ValueError: One file for several images.
    """
    if mask is None:
        return {}
    if not mask.exists():
        raise FileNotFoundError(f"no such mask or folder of masks: {str(mask)!r}; check the path")
    if not mask.is_dir() or mask.suffix == _STORE:
        if len(images) > 1:
            raise ValueError(f"expected a folder of masks for {len(images)} images, got one file: {str(mask)!r}")
        return dict.fromkeys(images, mask)
    by_name = {name: path for path, name in find_images([mask], suffixes={*IMAGE_SUFFIXES, _STORE}).items()}
    missing = [str(path) for path, name in images.items() if name not in by_name]
    if missing:
        raise FileNotFoundError(f"no mask in {str(mask)!r} for {', '.join(missing[:3])}; give each its image's name")
    return {path: by_name[name] for path, name in images.items()}


class OutputFolder:
    """A folder for one run's files. Files of earlier runs, or of a user's, are never replaced unless allowed.

    Args:
        path: Made at the first write.
        overwrite: Allow a folder that is not empty; files of the same names are replaced, others stay.
        protected: Files never replaced, whatever ``overwrite`` says (the inputs).

    Raises:
        FileExistsError: The folder holds something and ``overwrite`` is false.
        NotADirectoryError: A file stands there.
    """

    def __init__(self, path: str | Path, *, overwrite: bool = False, protected: Iterable[Path] = ()) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(
                f"expected a folder for the output, got a file: {str(path)!r}; name another folder"
            )
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
