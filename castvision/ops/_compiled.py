"""Compilation of the CPU's inner loops with numba; imported at the first call that needs one (numba takes a while)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numba


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile without the GIL; cached on disk where a folder can be written, else in memory."""
    try:
        done = numba.njit(cache=True, nogil=True, **options)(function)
    except RuntimeError:  # numba's "cannot cache function: no locator available"
        done = numba.njit(nogil=True, **options)(function)
    return cast(Callable[..., Any], done)
