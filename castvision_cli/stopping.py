"""What ends a command from outside: Ctrl-C and SIGTERM end it in one line, as an error that nobody takes for one."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a batch system sends; like Ctrl-C it is no failure of an image that others could survive."""


def exit_code(stop: KeyboardInterrupt) -> int:
    """As shells have it: 128 and the signal's number, 143 for SIGTERM and 130 for Ctrl-C."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def told(stop: KeyboardInterrupt) -> str:
    """What happened, for a message."""
    return "terminated" if isinstance(stop, Terminated) else "interrupted"


@contextmanager
def terminable() -> Iterator[None]:
    """Within it, SIGTERM raises `Terminated`; elsewhere than in the main thread it stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated
