"""What work leaves behind in this process goes back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return freed memory; does nothing but with glibc.

    It keeps what is freed for the thread that asked first, an arena for each; a server's requests come in many threads,
    and freed pieces between small ones that live on add up.
    """
    try:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    except (OSError, TypeError):  # Windows
        return
    if trim is not None:
        trim(0)
