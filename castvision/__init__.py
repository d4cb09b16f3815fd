"""Vision transformers whose attention works inside learned clusters of tokens, for timm.

Importing the package registers its models: afterwards ``timm.create_model("cast_vit_small_patch16_224")`` works.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from castvision._registration import register_with_timm

if TYPE_CHECKING:
    from types import ModuleType

    from castvision import models as models

__version__ = "0.1.0"

__all__ = ["__version__"]

register_with_timm()


def __getattr__(name: str) -> ModuleType:
    """``castvision.models`` without an import statement of its own."""
    if name == "models":
        return importlib.import_module("castvision.models")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
