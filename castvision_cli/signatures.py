"""The arguments that classes of a configuration take, read from their source: importing them would take seconds."""

from __future__ import annotations

import ast
import difflib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_OWN = frozenset({"config", "run_dir", "ema", "early_stopping", "seed_everything", "print_config", "help"})
_PARTS = ("model", "data", "trainer")
_NOT_OPTIONS = frozenset({"self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"})


def check_options(verb: str, words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what no class takes; of classes whose source is not found, later checks decide.

    Args:
        verb: "fit", "validate", "test" or "predict".
        words: The command line, without the configurations.
        contents: Of the configurations, the last one last.

    Raises:
        ValueError: An argument that is not known.
    """
    classes = {part: _class_named(part, words, contents) for part in _PARTS}
    flags = [word.partition("=")[0][2:] for word in words if word.startswith("--")]
    trainer = arguments_of("lightning.pytorch.trainer.trainer.Trainer", verb) or frozenset()
    for flag in flags:
        part, _, key = flag.partition(".")
        if part in _PARTS:
            _check(part, key.removeprefix("init_args.").split(".")[0].rstrip("+"), classes[part])
        elif trainer:
            _check("", flag, _OWN | (trainer - _NOT_OPTIONS))
    for content in contents:
        for part in _PARTS:
            section = content.get(part)
            if not isinstance(section, dict):
                continue
            # a class of its own in an earlier file takes other arguments
            named = section.get("class_path")
            known = classes[part] if part == "trainer" or named is None else arguments_of(str(named))
            for key in section if part == "trainer" else section.get("init_args") or {}:
                _check(part, str(key), known)


def _check(part: str, key: str, known: frozenset[str] | None) -> None:
    if known is None or key in known or key in ("", "class_path", "init_args", "dict_kwargs", "help"):
        return
    near = difflib.get_close_matches(key, sorted(known), n=1)
    full = f"{part}.{key}" if part else key
    hint = f"did you mean {full.removesuffix(key)}{near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"
    where = f" in {part}" if part else ""
    raise ValueError(f"{key!r} is not accepted{where}: {hint}")


def _class_named(part: str, words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> frozenset[str] | None:
    """What the class of a part takes; None = it is not known which, or not where its source is."""
    if part == "trainer":
        return arguments_of("lightning.pytorch.trainer.trainer.Trainer", "__init__")
    if any(word.partition("=")[0] in (f"--{part}", f"--{part}.class_path") for word in words):
        return None
    named = [content[part]["class_path"] for content in contents if "class_path" in (content.get(part) or {})]
    return arguments_of(str(named[-1])) if named else None


@lru_cache
def arguments_of(name: str, method: str = "__init__") -> frozenset[str] | None:
    """The arguments of a class's method, those of its bases where it hands on ``**kwargs``.

    Args:
        name: A class of `castvision.training` by its bare name, or any class by its import path.
        method: Whose arguments.

    Returns:
        Their names; None where the source is not found or hands on what only running it would tell.
    """
    module, _, cls = name.rpartition(".")
    if not module:
        where = _imports(_source("castvision.training")).get(name)
        return None if where is None else arguments_of(where, method)
    tree = _source(module)
    found = (
        None if tree is None else next((x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == cls), None)
    )
    if tree is None or found is None:
        return None
    bases = [ast.unparse(base) for base in found.bases]
    here = {x.name: f"{module}.{x.name}" for x in tree.body if isinstance(x, ast.ClassDef)} | _imports(tree)
    function = next((x for x in found.body if isinstance(x, ast.FunctionDef) and x.name == method), None)
    own: set[str] = set()
    if function is not None:
        own = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)} - {"self"}
        if function.args.kwarg is None:
            return frozenset(own)
    if not bases or bases[0] not in here:
        return None
    inherited = arguments_of(here[bases[0]], method)
    return None if inherited is None else frozenset(own | inherited)


def _imports(tree: ast.Module | None) -> dict[str, str]:
    """Import paths of the names that a module imports from others."""
    return {
        alias.asname or alias.name: f"{line.module}.{alias.name}"
        for line in (() if tree is None else ast.walk(tree))
        if isinstance(line, ast.ImportFrom) and line.level == 0
        for alias in line.names
    }


@lru_cache
def _source(module: str) -> ast.Module | None:
    """A module's source, found without importing its packages."""
    top, *rest = module.split(".")
    spec = find_spec(top)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8")) if rest and file.is_file() else None
