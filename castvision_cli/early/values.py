"""Values of a configuration that cannot be right, told by an annotation, by a lower limit or by the names there are.

The classes check them, too, for those who call them from Python; here it is said before they are imported.
"""

from __future__ import annotations

import ast
import difflib
import math
import re
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from castvision_cli.arguments import check_device

_LEAST = {
    "data.batch_size": 1, "data.num_workers": 0, "data.img_size": 1, "data.in_chans": 1, "model.num_classes": 1,
    "model.optimizer.lr": 0, "model.optimizer.weight_decay": 0, "trainer.accumulate_grad_batches": 1,
    "trainer.check_val_every_n_epoch": 1, "trainer.num_nodes": 1, "trainer.max_epochs": -1, "trainer.max_steps": -1,
    "trainer.gradient_clip_val": 0, "early_stopping": 1, "model.label_smoothing": 0, "model.mask_weight": 0,
    "model.schedule.warmup": 0, "model.schedule.final": 0, "model.weight_decay": 0,
}  # fmt: skip
"""Smallest values of numbers; null may stand for none."""
_SHARES = ("ema",)
"""Numbers between 0 and 1, neither included."""
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
_STRATEGIES = ("auto", "ddp", "deepspeed", "fsdp", "hpu", "model_parallel", "single", "xla")
"""How names of Lightning's strategies begin."""
_TRUTHS = ("true", "false", "yes", "no", "on", "off", "1", "0")
_MODEL_FUNCTION = re.compile(r"^def ([a-z]\w*)\(\s*pretrained\b", re.MULTILINE)
_ELSEWHERE = (":", "/")
"""In the names of models that are in folders and on hubs."""


def check_value(key: str, value: Any, annotation: ast.expr | None) -> None:
    """Refuse a value that an argument cannot have; what cannot be told is let through.

    Args:
        key: "model", "data" or "trainer", a dot and the argument's name; or the name of one of the command's own.
        value: As YAML reads it; ``...`` is none.
        annotation: The argument's, from its source; None = not known.

    Raises:
        ValueError: It names the key, what is expected and what came.
    """
    if value is ...:
        return
    kinds = _kinds(annotation)
    if kinds and not any(_is(kind, value) for kind in kinds):
        told = " or ".join(sorted(name if name != "None" else "null" for name in kinds))
        raise ValueError(f"expected {key} to be {told}, got {value!r}")
    if key == "trainer.accelerator" and isinstance(value, str):
        _check_accelerator(value)
    if key == "trainer.strategy" and isinstance(value, str) and not _begins_as_known(value):
        raise ValueError(f"expected trainer.strategy such as {', '.join(_STRATEGIES)}, got {value!r}")
    if key == "trainer.max_time" and isinstance(value, str) and not re.fullmatch(r"\d+(:\d+){3}", value):
        raise ValueError(f"expected trainer.max_time as DD:HH:MM:SS, got {value!r}")
    if value is None or key not in (*_LEAST, *_SHARES):
        return
    limit = f"0 < {key} < 1" if key in _SHARES else f"{key} >= {_LEAST[key]}"
    for each in value if isinstance(value, list) else [value]:
        number = _number(each) if isinstance(each, int | float | str) else None
        if number is None or not (0 < number < 1 if key in _SHARES else number >= _LEAST[key]):
            raise ValueError(f"expected {limit}, got {value!r}")


def _begins_as_known(strategy: str) -> bool:
    """Whether one of Lightning's is meant, or a class by its import path."""
    return "." in strategy or strategy.startswith(_STRATEGIES) or not strategy.islower()


def _check_accelerator(name: str) -> None:
    if name == "tpu" and find_spec("torch_xla") is None:
        raise ValueError("expected torch_xla for trainer.accelerator=tpu, found none; install it, or leave it out")
    if name in ("gpu", "cuda"):
        check_device("cuda", "trainer.accelerator")
    if name.isidentifier() and name not in _ACCELERATORS:
        near = difflib.get_close_matches(name, _ACCELERATORS, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ValueError(f"expected trainer.accelerator of {', '.join(_ACCELERATORS)}, got {name!r}{hint}")


def check_model_name(name: str, called: str = "") -> None:
    """Refuse a name under which neither timm nor castvision registers a model.

    Args:
        name: With or without a tag of weights; names of folders and hubs are let through.
        called: What stands before the name in the message, such as "model_name=".

    Raises:
        ValueError: It names similar ones.
    """
    if "timm" in sys.modules:  # a program that calls the command may have registered more
        return
    architecture = name.split(".")[0]
    if any(sign in name for sign in _ELSEWHERE) or not (known := model_names()) or architecture in known:
        return
    near = difflib.get_close_matches(architecture, sorted(known), n=2)
    hint = f", did you mean {' or '.join(near)}?" if near else "; castvision models '*' names them all"
    raise ValueError(f"unknown model {called}{name!r}{hint}")


@lru_cache
def model_names() -> frozenset[str]:
    """Names of timm's models, older ones included, of castvision's and of the trained ones it comes with.

    Empty where their sources are not found.
    """
    return registered_names() and registered_names() | {*trained_files()}


@lru_cache
def trained_files() -> dict[str, Path]:
    """The trained models that castvision comes with, by name."""
    return {path.stem: path for path in Path(str(_folder("castvision")), "weights").glob("*.safetensors")}


@lru_cache
def registered_names() -> frozenset[str]:
    """Those of them that come without weights trained for a task; empty where sources are not found."""
    folders = [_folder("castvision"), _folder("timm")]
    if None in folders:
        return frozenset()
    found: set[str] = set()
    for folder in folders:
        for path in Path(str(folder), "models").glob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(_MODEL_FUNCTION.findall(text))
            _, _, renamed = text.partition("register_model_deprecations(__name__")
            found |= set(re.findall(r"['\"](\w+)['\"]\s*:", renamed))
    return frozenset(found)


def _folder(package: str) -> Path | None:
    spec = find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def _kinds(annotation: ast.expr | None) -> frozenset[str]:
    """Plain types that an annotation allows, by name, and values, as written; empty if it allows anything else, too."""
    match annotation:
        case ast.Constant(value=None):
            return frozenset({"None"})
        case ast.Name(id="int" | "float" | "bool" | "str" as name):
            return frozenset({name})
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            constants = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return frozenset(repr(each.value) for each in constants if isinstance(each, ast.Constant))
        case ast.BinOp(op=ast.BitOr()):
            parts = [_kinds(annotation.left), _kinds(annotation.right)]
        case ast.Subscript(value=ast.Name(id="Optional")):
            parts = [_kinds(annotation.slice), frozenset({"None"})]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=members)):
            parts = [_kinds(member) for member in members]
        case _:
            return frozenset()
    return frozenset().union(*parts) if all(parts) else frozenset()


def _is(kind: str, value: Any) -> bool:
    """Whether jsonargparse may take a value for this type: what it may, is let through."""
    match kind:
        case "None":
            return value is None
        case literal if not literal.isidentifier():
            return repr(value) == literal
        case "bool":
            return isinstance(value, bool) or str(value).lower() in _TRUTHS
        case "int":
            return not isinstance(value, bool) and isinstance(value, int | float | str) and _is_whole(value)
        case "float":
            return not isinstance(value, bool) and isinstance(value, int | float | str) and _number(value) is not None
    return not isinstance(value, dict | list)  # 0123 is text where text is wanted


def _number(value: float | str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def _is_whole(value: float | str) -> bool:
    number = _number(value)
    return number is not None and math.isfinite(number) and number == int(number)
