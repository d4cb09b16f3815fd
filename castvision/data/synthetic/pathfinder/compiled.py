"""Compilation of the generator's inner loops: numba, without the interpreter lock, kept on disk where possible."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])


# Inner functions get arrays from their caller and make none, so they do without numba's reference counting: its atomic
# additions for each of the tables, at each call, take four fifths of the time. Nobody calls them from Python.
_INNER: dict[str, Any] = {
    "nogil": True,
    "forceinline": True,
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def kernel(function: Function) -> Function:
    """Compile a function that only other compiled functions call, and that creates no array."""
    return cast(Function, numba.njit(**_INNER)(function))


def entry_kernel(function: Function) -> Function:
    """Compile a function that Python calls, and keep the result for the next process.

    numba looks for a writable place (``NUMBA_CACHE_DIR``, ``__pycache__``, the user's cache folder). Where there is
    none, as in a read-only installation without a home, the function is compiled anew in every process.
    """
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # numba's "cannot cache function: no locator available"
        return cast(Function, numba.njit(nogil=True)(function))


def sources_digest(*others: Path) -> int:
    """A number that changes whenever a source file of this package, or of one of the ``others`` (folders), does.

    NOTE: numba's cache looks only at the file of the function that it stores, not at the functions which were inlined
    into it. An entry kernel that closes over this number is therefore compiled anew after any edit.
    """
    digest = hashlib.sha256()
    for folder in (Path(__file__).parent, *others):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return int.from_bytes(digest.digest()[:4], "little")
