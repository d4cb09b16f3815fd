"""What a checkpoint remembers beside its weights, read without torch, whose import takes seconds."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

CHECKPOINT_KEY = "castvision"
"""Under which the facts stand in a checkpoint, see `castvision.models.recipe.Recipe.to_dict`."""
_LARGEST = 1 << 28


class _Anything(dict[Any, Any]):
    """Stands for whatever object a checkpoint holds: it is made, filled and never looked at."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __call__(self, *_: Any, **__: Any) -> _Anything:
        return _Anything()

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class _PlainValues(pickle.Unpickler):
    """Numbers, texts, lists and dicts as they are; nothing of any library is imported and no code is run."""

    def find_class(self, module: str, name: str, /) -> Any:
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Anything

    def persistent_load(self, pid: Any, /) -> Any:
        return None  # the values of a tensor


def stored_facts(path: str | Path) -> Mapping[str, Any] | None:
    """What a checkpoint remembers, as `castvision.models.recipe.Recipe.from_dict` takes it; weights are not read.

    Args:
        path: Any file of weights, one of safetensors as `tools/ship_weights.py` writes it too.

    Returns:
        None for files of others, which remember nothing, and for what is no file of torch's at all: whoever reads the
        weights says what is wrong with it.
    """
    try:
        content = _header(path) if str(path).endswith(".safetensors") else _pickled(path)
    except Exception:  # a reader of bytes from anywhere raises anything
        return None
    facts = content.get(CHECKPOINT_KEY) if isinstance(content, dict) else None
    return facts if isinstance(facts, dict) and not isinstance(facts, _Anything) else None


def _pickled(path: str | Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        part = next(one for one in archive.infolist() if one.filename.endswith("/data.pkl"))
        if part.file_size > _LARGEST:
            return None
        with archive.open(part) as file:
            return _PlainValues(file).load()


def _header(path: str | Path) -> Any:
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        stated = json.loads(file.read(min(length, _LARGEST)))["__metadata__"]
    return {CHECKPOINT_KEY: json.loads(stated[CHECKPOINT_KEY])}


def is_slide_model(path: str | Path) -> bool:
    """Whether a model is a checkpoint that was trained on embeddings of slides."""
    return (stored_facts(path) or {}).get("task") == "slides"
