"""Configurations by bare name: ``quickstart`` is ``configs/quickstart.yaml``, in a checkout or an installed package."""

from __future__ import annotations

import difflib
from importlib.util import find_spec
from pathlib import Path


def config_folder() -> Path:
    """Where the shipped configurations are: the package's folder, or the checkout's."""
    spec = find_spec("castvision")  # found, not imported
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("expected the package castvision beside its command, found none; install it again")
    package = Path(spec.origin).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def find_config(name: str) -> Path:
    """A configuration by path or by bare name.

    Args:
        name: A file, or a shipped one's name, with or without ``.yaml``.

    Returns:
        The file.

    Raises:
        FileNotFoundError: Neither; near misses are named.
    """
    if Path(name).is_file():
        return Path(name)
    stem = name.removesuffix(".yaml")
    shipped = config_folder() / f"{stem}.yaml"
    if Path(stem).name == stem and shipped.is_file():
        return shipped
    near = difflib.get_close_matches(stem, config_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped ones: {', '.join(config_names())}"
    raise FileNotFoundError(f"no configuration {name!r}: {hint}")
