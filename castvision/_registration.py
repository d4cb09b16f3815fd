"""Registers the models with timm as late as can be: when timm itself is imported.

``import castvision`` promises that timm knows our models. timm brings torch, which takes seconds; a command that prints
its help, or refuses a wrong argument, must not wait for that. So if timm is not there yet, a hook on Python's import
system registers the models at the end of timm's import, before anybody can ask timm for one. When a module of ours is
what imports timm, that module is finished first: the models need it whole.
"""

from __future__ import annotations

import importlib
import importlib.abc
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

MODELS = "castvision.models"


def register_with_timm() -> None:
    """Register the models now if timm is loaded, else as soon as it is."""
    if "timm" in sys.modules:
        importlib.import_module(MODELS)
    elif not any(isinstance(finder, AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterTimm())


class AfterTimm(importlib.abc.MetaPathFinder):
    """Watches timm and our own modules being executed; at the end of the outermost one, with timm there, registers."""

    def __init__(self) -> None:
        self.depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, watched; None for the modules of others."""
        if fullname != "timm" and not fullname.startswith("castvision."):
            return None
        others = (finder for finder in tuple(sys.meta_path) if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            # NOTE: set on this one loader object, which keeps everything else a loader offers (resources, sources).
            spec.loader.exec_module = self._watched(spec.loader.exec_module)  # type: ignore[assignment, method-assign]
        return spec

    def _watched(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def execute_and_register(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and "timm" in sys.modules and self in sys.meta_path:
                sys.meta_path.remove(self)
                importlib.import_module(MODELS)

        return execute_and_register
