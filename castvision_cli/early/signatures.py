"""The arguments that classes of a configuration take, and of which types, read from their source.

Importing them would take seconds. What cannot be told from the source is let through, for later checks to decide.
"""

from __future__ import annotations

import ast
import difflib
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision_cli.early.values import check_model_name, check_value

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

Arguments = dict[str, ast.expr | None]
"""Names of arguments with their annotations; None = there is none."""

_OWN = frozenset({"config", "run_dir", "ema", "early_stopping", "seed_everything", "print_config", "help"})
_PARTS = ("model", "data", "trainer")
_TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
_NESTED = ("optimizer", "schedule")
"""Arguments of a task that have arguments of their own."""
_NOT_OPTIONS = frozenset({"self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"})


def check_options(
    verb: str, words: Sequence[str], contents: Sequence[Mapping[str, Any]], *, is_closed: bool = True
) -> None:
    """Refuse what no class takes, and what is not of its type; of classes whose source is not found, nothing is known.

    Args:
        verb: "fit", "validate", "test" or "predict".
        words: The command line, without the configurations.
        contents: Of the configurations, the last one last.
        is_closed: Whether no other package may register models.

    Raises:
        ValueError: An argument that is not known, or a value that it cannot have.
    """
    classes = {part: _class_named(part, words, contents) for part in _PARTS}
    trainer = arguments_of(_TRAINER, verb) or {}
    for flag, value in flags_in(words):
        part, _, key = flag.partition(".")
        if part in _PARTS:
            name, *deeper = key.removeprefix("init_args.").split(".")
            check_argument(part, name.rstrip("+"), classes[part])
            if deeper:
                check_value(f"{part}.{name}.{deeper[-1]}", value, None)
            elif name in ("", "class_path"):
                _check_class(part, value, is_closed)
            else:
                _check_value(part, name, value, classes[part], is_closed)
        elif trainer:
            check_argument("", flag, {*_OWN, *trainer} - _NOT_OPTIONS)
            check_value(flag, value, None)
    for content in contents:
        for part in _PARTS:
            section = content.get(part)
            if not isinstance(section, dict):
                continue
            # a class of its own in an earlier file takes other arguments
            named = section.get("class_path")
            _check_class(part, named, is_closed)
            known = classes[part] if part == "trainer" or named is None else arguments_of(str(named))
            values = section if part == "trainer" else section.get("init_args")
            for key, value in values.items() if isinstance(values, dict) else ():
                check_argument(part, str(key), known)
                _check_value(part, str(key), value, known, is_closed)


def _check_class(part: str, name: Any, is_closed: bool) -> None:
    """Refuse a bare name that is none of `castvision.training`, nor of a program's that calls the command."""
    if "lightning" in sys.modules:
        return
    own = imports_of(source_of("castvision.training"))
    if part == "trainer" or not isinstance(name, str) or not is_closed or not own:
        return
    if name.isidentifier() and name not in own:
        end = "Task" if part == "model" else "DataModule"
        offered = sorted({each for each in own if each.endswith(end)} - {"Task", "ImageDataModule"})
        near = difflib.get_close_matches(name, offered, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(offered)}, or an import path"
        raise ValueError(f"unknown class {name!r} as {part}: {hint}")


def _check_value(part: str, key: str, value: Any, known: Arguments | None, is_closed: bool) -> None:
    check_value(f"{part}.{key}", value, (known or {}).get(key))
    if key in _NESTED and isinstance(value, dict):
        for name, inner in (value.get("init_args") or value).items():
            check_value(f"{part}.{key}.{name}", inner, None)
    if part != "model" or not isinstance(value, str):
        return
    annotation = (known or {}).get(key)
    if key == "model_name" and is_closed and isinstance(annotation, ast.Name):  # slides have a Literal
        check_model_name(value, "model_name=")
    heads = imports_of(source_of("castvision.heads"))
    if key == "head" and heads and value not in heads:
        raise ValueError(f"expected head in {sorted(heads)}, got head={value!r}")


def flags_in(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Every ``--flag`` with its value as YAML reads it; ``...`` for a flag without one."""
    import yaml

    for place, word in enumerate(words):
        flag, is_joined, value = word.partition("=")
        if word.startswith("--"):
            following = value if is_joined else next(iter(words[place + 1 : place + 2]), "--")
            try:
                yield flag[2:], ... if following.startswith("--") else yaml.safe_load(following)
            except yaml.YAMLError:
                yield flag[2:], following


def check_argument(part: str, key: str, known: Collection[str] | None) -> None:
    """Refuse an argument that is not known; None: nothing is known.

    Raises:
        ValueError: It names a similar one, or all.
    """
    if known is None or key in known or key in ("", "class_path", "init_args", "dict_kwargs", "help"):
        return
    near = difflib.get_close_matches(key, sorted(known), n=1)
    full = f"{part}.{key}" if part else key
    hint = f"did you mean {full.removesuffix(key)}{near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"
    where = f" in {part}" if part else ""
    raise ValueError(f"{key!r} is not accepted{where}: {hint}")


def _class_named(part: str, words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> Arguments | None:
    """What the class of a part takes; None = it is not known which, or not where its source is."""
    if part == "trainer":
        return arguments_of(_TRAINER)
    if any(word.partition("=")[0] in (f"--{part}", f"--{part}.class_path") for word in words):
        return None
    named = [content[part]["class_path"] for content in contents if "class_path" in (content.get(part) or {})]
    return arguments_of(str(named[-1])) if named else None


@lru_cache
def arguments_of(name: str, method: str = "__init__") -> Arguments | None:
    """The arguments of a class's method, those of its bases where it hands on ``**kwargs``.

    Args:
        name: A class of `castvision.training` by its bare name, or any class by its import path.
        method: Whose arguments.

    Returns:
        Their names, with their annotations; None where the source is not found or hands on what only running it would
        tell.
    """
    module, _, cls = name.rpartition(".")
    if not module:
        where = imports_of(source_of("castvision.training")).get(name)
        return None if where is None else arguments_of(where, method)
    tree = source_of(module)
    found = (
        None if tree is None else next((x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == cls), None)
    )
    if tree is None or found is None:
        return None
    bases = [ast.unparse(base) for base in found.bases]
    here = {x.name: f"{module}.{x.name}" for x in tree.body if isinstance(x, ast.ClassDef)} | imports_of(tree)
    function = next((x for x in found.body if isinstance(x, ast.FunctionDef) and x.name == method), None)
    own: Arguments = {}
    if function is not None:
        taken = (*function.args.args, *function.args.kwonlyargs)
        own = {each.arg: _without_aliases(each.annotation, tree) for each in taken if each.arg != "self"}
        if function.args.kwarg is None:
            return own
    if not bases or bases[0] not in here:
        return None
    inherited = arguments_of(here[bases[0]], method)
    return None if inherited is None else {**inherited, **own}


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
