"""What classes take, read from their sources: importing them would take seconds."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

Arguments = dict[str, ast.expr | None]
"""Names of arguments with their annotations; None = there is none."""
OPEN = "**"
"""Stands among the names of arguments where a class takes others, too, which only running it would tell."""
_TRAINING = "castvision.training"


@lru_cache
def arguments_of(name: str, method: str = "__init__") -> Arguments | None:
    """The arguments of a class's method, those of its bases where it hands on ``**kwargs``.

    Args:
        name: A class of `castvision.training` by its bare name, or any class by its import path.
        method: Whose arguments.

    Returns:
        Their names, with their annotations, and `OPEN`; None where the source is not found.
    """
    module, found = _class_at(name)
    tree = source_of(module)
    if tree is None or found is None:
        return None
    function = _function(found, method)
    own: Arguments = {}
    if function is None and any(ast.unparse(each).startswith("dataclass") for each in found.decorator_list):
        fields = [x for x in found.body if isinstance(x, ast.AnnAssign)]
        return {ast.unparse(each.target): each.annotation for each in fields}
    if function is not None:
        taken = (*function.args.args, *function.args.kwonlyargs)
        own = {each.arg: _without_aliases(each.annotation, tree) for each in taken if each.arg != "self"}
        if function.args.kwarg is None:
            return own
    bases = [ast.unparse(base) for base in found.bases]
    here = {x.name: f"{module}.{x.name}" for x in tree.body if isinstance(x, ast.ClassDef)} | imports_of(tree)
    inherited = arguments_of(here[bases[0]], method) if bases and bases[0] in here else None
    return {**({OPEN: None} if inherited is None else inherited), **own}


def needed_by(name: str) -> list[str]:
    """Arguments without which a class cannot be made; of one whose own constructor is not found, none."""
    found = _class_at(name)[1]
    function = None if found is None else _function(found, "__init__")
    if function is None:
        return []
    named = [each.arg for each in function.args.args if each.arg != "self"]
    needed = named[: len(named) - len(function.args.defaults)]
    keywords = zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    return [*needed, *(each.arg for each, default in keywords if default is None)]


def _class_at(name: str) -> tuple[str, ast.ClassDef | None]:
    """The module of a class and its definition, found also where a package hands it on."""
    module, _, cls = name.rpartition(".")
    module = module or _TRAINING
    tree = source_of(module)
    found = next((x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == cls), None) if tree else None
    elsewhere = imports_of(tree).get(cls)
    return _class_at(elsewhere) if found is None and elsewhere is not None else (module, found)


def _function(found: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((x for x in found.body if isinstance(x, ast.FunctionDef) and x.name == name), None)


def _without_aliases(annotation: ast.expr | None, tree: ast.Module | None) -> ast.expr | None:
    """An annotation with what names of the module stand for, such as Lightning's list of precisions."""
    match annotation:
        case ast.Name(id=name):
            module, _, original = imports_of(tree).get(name, "").rpartition(".")
            if module:
                return _without_aliases(ast.Name(original), source_of(module)) if name.isupper() else annotation
            meant = next(
                (x.value for x in (tree.body if tree else ()) if isinstance(x, ast.Assign)
                 and isinstance(x.targets[0], ast.Name) and x.targets[0].id == name), None,
            )  # fmt: skip
            return annotation if meant is None else _without_aliases(meant, tree)
        case ast.Subscript(value=ast.Name(id="Optional" | "Union") as kind, slice=inner):
            return ast.Subscript(kind, _without_aliases(inner, tree) or inner)
        case ast.Tuple(elts=members):
            return ast.Tuple([_without_aliases(each, tree) or each for each in members])
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return ast.BinOp(_without_aliases(left, tree) or left, ast.BitOr(), _without_aliases(right, tree) or right)
    return annotation


@lru_cache
def imports_of(tree: ast.Module | None) -> dict[str, str]:
    """Import paths of the names that a module imports from others."""
    return {
        alias.asname or alias.name: f"{line.module}.{alias.name}"
        for line in (() if tree is None else ast.walk(tree))
        if isinstance(line, ast.ImportFrom) and line.level == 0
        for alias in line.names
    }


@lru_cache
def source_of(module: str) -> ast.Module | None:
    """A module's source, found without importing its packages."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")) if rest and file.is_file() else None
