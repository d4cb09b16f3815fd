"""Registers the models with timm as late as can be: when timm itself is imported.

``import castvision`` promises that timm knows our models. timm brings torch, which takes seconds; a command that prints
its help, or refuses a wrong argument, must not wait for that. So if timm is not there yet, a hook on Python's import
system registers the models at the end of timm's own import, before anybody can ask timm for one.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
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
    """Lets Python find timm in the usual way and has its loader import our models when it is done."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Timm's own specification, with our models appended to its execution; None for any other module."""
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            sys.meta_path.insert(0, self)
            return None
        loader = spec.loader
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            try:
                execute(module)
            except BaseException:
                sys.meta_path.insert(0, self)  # timm may be imported again after a failure
                raise
            importlib.import_module(MODELS)

        # NOTE: set on this one loader object, which keeps everything else a loader offers (resources, sources).
        loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec
