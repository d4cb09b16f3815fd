"""Class names on the command line and in configurations are text as written: no, 1 and null are names like others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEY = "class_names"


def quote_class_names(words: Sequence[str]) -> list[str]:
    """Quote each name in the values of ``--data.class_names``, so that no reader of YAML makes anything else of it.

    Args:
        words: Of a command line.

    Returns:
        The same words, lists of names as JSON.
    """
    quoted: list[str] = []
    is_value = False
    for word in words:
        flag, is_joined, value = word.partition("=")
        is_names = not is_value and flag.startswith("--") and flag.endswith(f".{_KEY}")
        if is_value:
            quoted.append(_quote(word))
        else:
            quoted.append(f"{flag}={_quote(value)}" if is_names and is_joined else word)
        is_value = is_names and not is_joined
    return quoted


def _quote(value: str) -> str:
    import yaml

    try:
        names = yaml.load(value, Loader=yaml.BaseLoader)  # makes nothing but text, lists and maps
    except yaml.YAMLError:
        return value
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return json.dumps(names, ensure_ascii=False) if is_list else value


def keep_class_names() -> None:
    """Have jsonargparse read the class names in configurations as they are written."""
    import yaml
    from jsonargparse import get_loader, set_loader

    original = get_loader("yaml")
    if getattr(original, "keeps_class_names", False):
        return

    def load(text: str) -> Any:
        value = original(text)
        if _KEY not in text:
            return value
        return _as_written(value, yaml.load(text, Loader=yaml.BaseLoader))

    load.keeps_class_names = True  # type: ignore[attr-defined]  # so that a second call changes nothing
    set_loader("yaml", load, (yaml.YAMLError,))


def _as_written(value: Any, written: Any) -> Any:
    """Parsed YAML with the lists below ``class_names`` taken from the same YAML read as text."""
    if not isinstance(value, dict) or not isinstance(written, dict):
        return value
    result = {}
    for key, part in value.items():
        text = written.get(str(key))
        is_names = key == _KEY and isinstance(part, list) and isinstance(text, list)
        result[key] = text if is_names else _as_written(part, text)
    return result
