"""Whether a value is of the type that an annotation says, where the annotation is read from a source, not imported.

What cannot be told is let through, and so is what jsonargparse turns into that type: text with a number in it, or the
name of a file that holds a list.
"""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

_TRUTHS = ("true", "false", "yes", "no", "on", "off", "1", "0")
_LISTS = ("list", "List", "Sequence")
_DICTS = ("dict", "Dict", "Mapping")


def allows(annotation: ast.expr | None, value: Any) -> bool:
    """Whether a value may be given where the annotation stands.

    Args:
        annotation: Of an argument; None = it has none.
        value: As YAML reads it.
    """
    match annotation:
        case ast.Constant(value=None):
            return value is None
        case ast.Name(id="int" | "float" | "bool" | "str" as name):
            return _is_plain(name, value)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            constants = choices.elts if isinstance(choices, ast.Tuple) else [choices]
            return any(repr(each.value) == repr(value) for each in constants if isinstance(each, ast.Constant))
        case ast.BinOp(op=ast.BitOr()) | ast.Subscript(value=ast.Name(id="Optional" | "Union")):
            return any(allows(member, value) for member in _members(annotation))
        case ast.Name(id=name) | ast.Subscript(value=ast.Name(id=name)) if name in _DICTS:
            return isinstance(value, dict) or _may_hold_one(value)
        case ast.Subscript(value=ast.Name(id=name), slice=kind) if name in _LISTS:
            return _may_hold_one(value) or (isinstance(value, list) and all(allows(kind, each) for each in value))
        case ast.Subscript(value=ast.Name(id="tuple" | "Tuple"), slice=ast.Tuple(elts=kinds)):
            return _may_hold_one(value) or (isinstance(value, list) and _fit(kinds, value))
    return True


def _fit(kinds: list[ast.expr], values: list[Any]) -> bool:
    """Whether values are those of a tuple."""
    if isinstance(kinds[-1], ast.Constant):  # any number
        return all(allows(kinds[0], each) for each in values)
    return len(kinds) == len(values) and all(map(allows, kinds, values))


def told(annotation: ast.expr) -> str:
    """The types in words, such as "int or null"."""
    named = list(dict.fromkeys(word for member in _members(annotation) for word in _words(member)))
    return " or ".join(sorted(named, key=lambda word: word == "null"))


def _members(annotation: ast.expr) -> list[ast.expr]:
    """The types of a union, one by one."""
    match annotation:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return [*_members(left), *_members(right)]
        case ast.Subscript(value=ast.Name(id="Optional"), slice=kind):
            return [*_members(kind), ast.Constant(None)]
        case ast.Subscript(value=ast.Name(id="Union"), slice=ast.Tuple(elts=kinds)):
            return [member for kind in kinds for member in _members(kind)]
    return [annotation]


def _words(annotation: ast.expr) -> list[str]:
    match annotation:
        case ast.Constant(value=None):
            return ["null"]
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            return [ast.unparse(each) for each in (choices.elts if isinstance(choices, ast.Tuple) else [choices])]
    return [ast.unparse(annotation)]


def _is_plain(kind: str, value: Any) -> bool:
    """Whether jsonargparse may take a value for int, float, bool or str."""
    if kind == "str":
        return not isinstance(value, dict | list)  # 0123 is text where text is wanted
    if kind == "bool":
        return isinstance(value, bool) or str(value).lower() in _TRUTHS
    number = None if isinstance(value, bool) or not isinstance(value, int | float | str) else as_number(value)
    return number is not None and (kind == "float" or (math.isfinite(number) and number == int(number)))


def as_number(value: float | str) -> float | None:
    """A number, or text of one; None for other text."""
    try:
        return float(value)
    except ValueError:
        return None


def _may_hold_one(value: Any) -> bool:
    """Whether a value is text of a list or a dict, or the name of a file."""
    return isinstance(value, str) and (value.lstrip()[:1] in ("[", "{") or Path(value).is_file())
