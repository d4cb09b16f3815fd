"""What every test begins with, whatever ran before it in the same process; and how the process looks for garbage."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest


def pytest_configure() -> None:
    """Cycles of garbage are looked for more seldom: libraries make a million objects that stay."""
    gc.set_threshold(10_000, 20, 20)


def pytest_collection_finish() -> None:
    """What was imported until now is not looked through again: a sixth of the suite's time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Nor at the end of the process."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_messages_are_seen() -> Iterator[None]:
    """``castvision train`` shows our messages itself, and from then on no logger above: ``caplog`` would see none."""
    yield
    ours = logging.getLogger("castvision")
    ours.handlers.clear()
    ours.propagate = True
    ours.setLevel(logging.NOTSET)
