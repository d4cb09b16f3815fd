"""Parts of the library that read files and lists, imported without its models: torch and timm take seconds."""

from __future__ import annotations

import logging
import os
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_WITHOUT_TORCH = "CASTVISION_WITHOUT_TORCH"


@contextmanager
def without_models() -> Iterator[None]:
    """What is imported inside comes without castvision's models; whatever needs them later imports them itself."""
    before = os.environ.get(_WITHOUT_TORCH)
    os.environ[_WITHOUT_TORCH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_WITHOUT_TORCH]
        else:
            os.environ[_WITHOUT_TORCH] = before


@contextmanager
def silently() -> Iterator[None]:
    """No messages of castvision's own and no warnings from inside: whoever does the same again later says them."""
    ours = logging.getLogger("castvision")
    before = ours.level
    ours.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch: weights that are copied into a model without values stay nowhere
            yield
    finally:
        ours.setLevel(before)
