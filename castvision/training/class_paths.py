"""A configuration is data: which classes it may name, so that a stranger's file runs nothing but training.

jsonargparse asks before it imports what a value names. What `castvision.allowed_classes` does not list is refused
unimported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jsonargparse import set_parsing_settings
from torch.optim import Optimizer

from castvision.allowed_classes import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Sequence


def allow_classes(more: Sequence[str] = ()) -> None:
    """Have every parser of this process refuse classes of other packages before they are imported.

    Args:
        more: Further prefixes of import paths, such as "my_package" or "my_package.data.MyDataModule".

    Raises:
        ValueError: Not a prefix of import paths.
    """
    for prefix in more:
        if not all(part.isidentifier() for part in prefix.split(".")):
            raise ValueError(f"expected --allow-class PREFIX of import paths, such as my_package.data, got {prefix!r}")
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*ALLOWED, *more],
        instantiate_subclass_spec_in_any=False,  # model_kwargs: {…: {class_path: …}} stays what it is, a dict
        config_read_mode_fsspec_enabled=False,  # Lightning lets the value of an option be a file on a network
    )


def check_optimizer(value: Any) -> None:
    """Refuse as optimiser what is none: it is called with the model's parameters, and a function could do anything.

    Args:
        value: As parsed: with a ``class_path`` (which may be imported), or the default's class.

    Raises:
        ValueError: No subclass of `torch.optim.Optimizer`.
    """
    found = value
    path = value.get("class_path") if hasattr(value, "get") else None
    if path is not None:
        module, _, name = path.rpartition(".")
        found = getattr(import_module(module), name)
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError(f"expected a subclass of torch.optim.Optimizer as optimizer, got {path or value!r}")
