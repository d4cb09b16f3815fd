"""Files that are written whole or not at all, and JSON that other programs wrote."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_LONGEST_NAME = 200
"""Bytes of a temporary name: file systems allow 255, and a file may get others beside it by longer endings."""


def part_of(path: Path) -> Path:
    """Where a file stays while it is written: ``.NAME.part`` in its folder, or a digest in place of a long name."""
    name = f".{path.name}.part"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.part"
    return path.with_name(name)


@contextmanager
def draft(path: Path, *, is_durable: bool = False) -> Iterator[Path]:
    """A temporary file to write to; it takes its place when the block ends well, and is deleted when it does not.

    A folder may be made in its place, such as a zarr store.

    Args:
        path: Of the file in the end; its folder is made.
        is_durable: Wait until the disk has it, so that a machine that loses power keeps the old file or the new one.

    Yields:
        `part_of` the path, not there yet.

    Raises:
        OSError: Of the block, such as no space left; it names ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = part_of(path)
    remove(temporary)
    try:
        with naming(path):
            yield temporary
            if temporary.is_dir():
                remove(path)  # no system puts a folder in the place of one that is not empty
            if is_durable:
                flush(temporary)
            temporary.replace(path)
            if is_durable:
                flush(path.parent)
    except BaseException:
        remove(temporary)
        raise


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; what is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until the disk has the content of a file, or the names in a folder (where the system can be asked that)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in an error of the system that names none or a temporary one, such as "No space left on device"."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from error


def read_json(path: Path) -> Any:
    """The content of a JSON file, with or without a byte order mark.

    Raises:
        OSError: It cannot be read.
        ValueError: Something else in it; the message names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"expected JSON in {str(path)!r}: {error}; export it again, or move it away") from error
