"""Looking at a model without leaving a trace in it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within a ``with``; then every module is in its own mode again, those frozen in training too.

    Args:
        model: Any module.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook of a module that leaves calls of other threads alone, which may run the same model meanwhile.

    Args:
        hook: Of torch's, before or after forward.
    """
    owner = threading.get_ident()

    def called(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == owner else None

    return called
