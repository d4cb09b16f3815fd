"""One run at a time writes into a folder: two would take each other's temporary files away and mix their tables."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary, finalize

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform != "win32":  # which has none; there a folder is not locked
    import fcntl

held: WeakValueDictionary[str, FolderLock] = WeakValueDictionary()
"""Locks of this process, by the folder's real path."""


class FolderLock:
    """A folder of which no other process can have one, until it is released.

    That happens with the object's end, too, or with the process, however it ends.

    Args:
        folder: Exists.

    Raises:
        BlockingIOError: Another process has it.
    """

    def __init__(self, folder: Path) -> None:
        self._end: finalize[..., object] = finalize(self, bool)
        if sys.platform != "win32":
            handle = os.open(folder, os.O_RDONLY)
            self._end = finalize(self, os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"another run writes into {str(folder)!r}; wait for its end, or name another output folder"
                ) from None
            except OSError:  # some network file systems have no locks
                return

    @property
    def is_held(self) -> bool:
        """Whether it was not released yet."""
        return self._end.alive

    def release(self) -> None:
        """Let others have the folder, whoever still knows this object; a second time does nothing."""
        self._end()


def lock_of(folder: Path) -> FolderLock:
    """The lock of a folder; parts of one process share it.

    Args:
        folder: Exists.

    Raises:
        BlockingIOError: Another process has it.
    """
    place = os.path.realpath(folder)
    lock = held.get(place)
    if lock is None or not lock.is_held:
        lock = held[place] = FolderLock(folder)
    return lock
