"""What every test begins with, whatever ran before it in the same process."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _own_messages_are_seen() -> Iterator[None]:
    """``castvision train`` shows our messages itself, and from then on no logger above: ``caplog`` would see none."""
    yield
    ours = logging.getLogger("castvision")
    ours.handlers.clear()
    ours.propagate = True
    ours.setLevel(logging.NOTSET)
