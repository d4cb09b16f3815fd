"""Errors as people read them."""

from __future__ import annotations

FAILURES = (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)
"""What the work on one file may end with while the others go on; RuntimeError includes torch's out of memory."""


class CheckpointError(ValueError):
    """A file of weights that cannot be used: damaged, of another program or architecture, or with impossible values."""


def one_line(error: BaseException, limit: int | None = None) -> str:
    """An error's message on one line.

    Args:
        error: Any exception.
        limit: Longest length in characters; None = no limit.

    Returns:
        The message with all white space as single spaces, cut with "…" if it is longer; the name of the exception's
        class if it has no message.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if limit is None or len(text) <= limit else f"{text[: limit - 1]}…"
