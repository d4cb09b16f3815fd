"""Files that a list names: a list may come from a stranger, and may name any file of the machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from castvision.data.reading.folders import as_on_disk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def listed_files(folder: Path, names: Sequence[str], lines: Sequence[str], inside: Sequence[Path] | None) -> list[Path]:
    """The files that a list names, which lie in given folders or below them.

    It counts where a file lies in the end: ``sub/../a.png`` is inside; ``../a.png``, an absolute path to elsewhere and
    a link that leads out of the folder are not. The folders themselves may be links. Files need not exist. Backslashes
    are those of Windows where no file has them in its name.

    Args:
        folder: What names are relative to.
        names: As listed.
        lines: Where each stands, for messages.
        inside: The folders, such as the list's own; None = anywhere.

    Returns:
        Paths as the file system spells them.

    Raises:
        ValueError: A file outside of all of them; the first such line is named.
    """
    paths = as_on_disk([folder / name for name in names])
    if any("\\" in name for name in names):
        other = as_on_disk([folder / name.replace("\\", "/") for name in names])
        paths = [path if os.path.lexists(path) else spelt for path, spelt in zip(paths, other, strict=True)]
    if inside is None:
        return paths
    roots = tuple(os.path.join(os.path.realpath(one), "") for one in inside)
    for path, name, line in zip(paths, names, lines, strict=True):
        place = os.path.realpath(path)
        if not place.startswith(roots):
            raise ValueError(
                f"{line}: expected a file in {str(inside[0])!r} or below it, got {name!r}, which lies at {place!r}; "
                "move it there or, if you trust the list, allow it: --data.allow_outside_root true in training, "
                "--allow-outside-root in evaluation"
            )
    return paths
