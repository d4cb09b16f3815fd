"""Classes that a configuration names: told from their modules' sources whether it may, and whether they are there."""

from __future__ import annotations

import ast
import difflib
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from castvision_cli.early.light import without_models
from castvision_cli.early.monitors import check_monitor
from castvision_cli.early.signatures import check_argument, flags_in
from castvision_cli.early.sources import arguments_of, imports_of, needed_by, source_of
from castvision_cli.early.values import check_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_OPTIMIZERS = "torch.optim"
_SLOTS = ("callbacks", "logger", "plugins", "profiler", "strategy")
"""Arguments of the trainer that take objects."""
_HOMES = {
    "callbacks": "callbacks", "logger": "loggers", "plugins": "plugins", "profiler": "profilers",
    "strategy": "strategies",
}  # fmt: skip
"""The packages of Lightning's that have them."""
_BY_WORD = ("profiler", "strategy")
"""Those that a word may stand for that is no class, such as "ddp"."""
_NEEDS = {
    "CometLogger": ("comet_ml",), "MLFlowLogger": ("mlflow", "mlflow_skinny"), "NeptuneLogger": ("neptune",),
    "RichModelSummary": ("rich",), "RichProgressBar": ("rich",), "TensorBoardLogger": ("tensorboard", "tensorboardX"),
    "WandbLogger": ("wandb",),
}  # fmt: skip
"""Packages that Lightning's classes import when they are made, any one of them."""
_APART = ("every_n_epochs", "every_n_train_steps", "train_time_interval")
"""Arguments of ModelCheckpoint that exclude each other."""
_WITHOUT_MONITOR = (-1, 0, 1)
"""How many checkpoints it keeps where it does not know which are better."""


def check_classes(words: Sequence[str], contents: Sequence[Mapping[str, Any]], more: Sequence[str] = ()) -> None:
    """Refuse classes of packages that a configuration may not name, and those that their module does not have.

    Args:
        words: The command line, without the configurations.
        contents: Of the configurations.
        more: Further packages that it may name.

    Raises:
        ValueError: It names the class, and what is near to it.
    """
    with without_models():
        from castvision.allowed_classes import ALLOWED

    if "lightning" in sys.modules:  # a program that calls the command may have made classes of its own
        return
    for name in (*_in_files(contents), *_in_words(words)):
        module, _, cls = name.rpartition(".")
        if not module:
            continue
        if not any(f"{name}.".startswith(f"{prefix}.") for prefix in (*ALLOWED, *more)):
            raise ValueError(
                f"the configuration names {name}, which is not among the classes it may run; if you trust it, add "
                f"--allow-class {name}"
            )
        known = _names_in(module)
        if known and cls not in known:
            near = difflib.get_close_matches(cls, sorted(known), n=1)
            hint = f", did you mean {module}.{near[0]}?" if near else "; check the name"
            raise ValueError(f"no class {cls!r} in {module}{hint}")
    _check_words_of_optimizer(words, contents)
    task = "" if more else _task(words, contents)  # another package's callback may give metrics of its own
    for slot, name, arguments in _objects(words, contents):
        check_object(slot, name, arguments)
        check_monitor(task, name, arguments)


def check_optimizer(name: str, arguments: Mapping[str, Any]) -> str:
    """Refuse an optimiser that torch does not have, and arguments that one of torch's does not take.

    Args:
        name: Bare, or an import path.
        arguments: What it is to be called with, beside the parameters.

    Returns:
        Its import path.

    Raises:
        ValueError: It names those there are.
    """
    found = imports_of(source_of(_OPTIMIZERS))
    known = sorted(each for each in found if each[0].isupper() and each != "Optimizer")
    bare = name.removeprefix(f"{_OPTIMIZERS}.")
    if name.isidentifier() and known and name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}, or an import path"
        raise ValueError(f"unknown optimizer {name!r}: {hint}")
    taken = arguments_of(found[bare]) if bare in found else None
    for key, value in arguments.items():
        check_argument("model.optimizer", str(key), taken)
        check_value(f"model.optimizer.{key}", value, (taken or {}).get(key))
    return f"{_OPTIMIZERS}.{name}" if name.isidentifier() else name


def check_object(slot: str, name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse an object of the trainer's that is not known by its bare name, is not installed, or takes other arguments.

    Args:
        slot: The trainer's argument, such as "callbacks".
        name: Bare, or an import path.
        arguments: What it is to be made with.

    Raises:
        ValueError: It names similar ones, or the argument.
    """
    bare = name.rpartition(".")[2]
    known = imports_of(source_of(f"lightning.pytorch.{_HOMES[slot]}"))
    if bare == name and known and name not in known:
        near = difflib.get_close_matches(name, sorted(known), n=1)
        hint = f", did you mean {near[0]}?" if near else f"; Lightning's are in lightning.pytorch.{_HOMES[slot]}"
        raise ValueError(f"unknown class {name!r} in trainer.{slot}{hint}")
    needed = _NEEDS.get(bare)
    if needed is not None and all(find_spec(each) is None for each in needed):
        raise ValueError(f"expected the package {' or '.join(needed)} for {bare}, found none; pip install {needed[0]}")
    path = known.get(name, name)
    taken = arguments_of(path)
    for key, value in arguments.items():
        check_argument(bare, str(key), taken)
        check_value(f"{bare}.{key}", value, (taken or {}).get(key))
    if missing := [key for key in needed_by(path) if key not in arguments]:
        raise ValueError(f"expected {', '.join(f'{bare}.{key}' for key in missing)} in trainer.{slot}, found none")
    if bare == "ModelCheckpoint":
        _check_checkpoints(arguments)
    if bare == "ModelPruning":
        _check_pruning(arguments)


def _check_checkpoints(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of Lightning's ModelCheckpoint that do not go together."""
    apart = [key for key in _APART if arguments.get(key)]
    if len(apart) > 1:
        raise ValueError(
            f"expected one of {', '.join(f'ModelCheckpoint.{key}' for key in apart)}, got {len(apart)} of them"
        )
    kept = arguments.get("save_top_k", 1)
    if arguments.get("monitor") is None and isinstance(kept, int) and kept not in _WITHOUT_MONITOR:
        raise ValueError(
            f"expected ModelCheckpoint.monitor, by which {kept} checkpoints are the best, found none; "
            "ModelCheckpoint.save_top_k=-1 keeps all"
        )


def _check_pruning(arguments: Mapping[str, Any]) -> None:
    """Refuse Lightning's ModelPruning by rows or columns without which, and over all layers at once."""
    function = str(arguments.get("pruning_fn")).lower()
    needed = ("pruning_dim", "pruning_norm") if function == "ln_structured" else ("pruning_dim",)
    missing = [f"ModelPruning.{key}" for key in needed if arguments.get(key) is None]
    if function.endswith("_structured") and (missing or arguments.get("use_global_unstructured", True) is True):
        wanted = " and ".join([*missing, "ModelPruning.use_global_unstructured=false"])
        raise ValueError(f"expected {wanted} with pruning_fn={function}, got {dict(arguments)}")


def _objects(
    words: Sequence[str], contents: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """What the trainer is to be given, with its arguments: the last that is said of each slot."""
    found: dict[str, list[tuple[Any, dict[str, Any]]]] = {}
    for content in contents:
        section = content.get("trainer")
        for slot, value in section.items() if isinstance(section, dict) else ():
            _take(found, str(slot), "", value)
    for flag, value in flags_in(words):
        part, _, name = flag.partition(".")
        slot, _, argument = name.partition(".")
        if part == "trainer":
            _take(found, slot, argument, value)
    for slot, objects in found.items():
        for name, arguments in objects:
            if isinstance(name, str) and _is_path(name) and (slot not in _BY_WORD or not name.islower() or "." in name):
                yield slot, name, arguments


def _take(found: dict[str, list[tuple[Any, dict[str, Any]]]], slot: str, argument: str, value: Any) -> None:
    """Add what is said of a slot, as the parser does: objects in place of those before, or beside them after a plus."""
    name, argument = slot.rstrip("+"), argument.removeprefix("init_args.")
    if name not in _HOMES:
        return
    before = found.setdefault(name, [])
    if argument not in ("", "class_path", "init_args"):  # of the object that was named last
        key, _, deeper = argument.partition(".")
        if before:
            before[-1][1][key] = ... if deeper else value
        return
    if argument == "init_args":
        value = {"init_args": value}
    objects = [_parts(each) for each in (value if isinstance(value, list) else [value])]
    if before and isinstance(value, dict) and "class_path" not in value:
        before[-1][1].update(objects[0][1])
    else:
        found[name] = [*(before if slot.endswith("+") else []), *objects]


def _parts(value: Any) -> tuple[Any, dict[str, Any]]:
    """The class and the arguments of an object, given as such or by name."""
    if not isinstance(value, dict):
        return value, {}
    arguments = value.get("init_args") or {}
    return (value.get("class_path"), dict(arguments)) if isinstance(arguments, dict) else (None, {})


def _task(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> str:
    """The class of the model, the last one named."""
    sections = [content.get("model") for content in contents]
    named = [section.get("class_path") for section in sections if isinstance(section, dict)]
    named += [value for flag, value in flags_in(words) if flag in ("model", "model.class_path")]
    return str(next(filter(None, reversed(named)), ""))


def _check_words_of_optimizer(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse arguments on the command line that the optimiser does not take."""
    name, arguments = "AdamW", dict[str, Any]()
    for content in contents:
        section = content.get("model")
        inside = section.get("init_args") if isinstance(section, dict) else None
        value = inside.get("optimizer") if isinstance(inside, dict) else None
        name = value.get("class_path", name) if isinstance(value, dict) else value or name
    for flag, value in flags_in(words):
        part, _, key = flag.removeprefix("model.").removeprefix("init_args.").partition(".")
        if part != "optimizer" or not flag.startswith("model."):
            continue
        key = key.removeprefix("init_args.")
        if key in ("", "class_path"):
            name = value.get("class_path", name) if isinstance(value, dict) else value
        elif key not in ("init_args", "help"):
            arguments[key] = value
    if isinstance(name, str):
        check_optimizer(name, arguments)


def _in_files(contents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Import paths in the places of configurations that take classes."""
    for content in contents:
        for part in ("model", "data"):
            section = content.get(part)
            if isinstance(section, dict):
                yield from _paths_in({"class_path": section.get("class_path")})
                arguments = section.get("init_args")
                if part == "model" and isinstance(arguments, dict):
                    yield from _optimizer(arguments.get("optimizer"))
        trainer = content.get("trainer")
        yield from _paths_in({slot: trainer.get(slot) for slot in _SLOTS} if isinstance(trainer, dict) else None)


def _in_words(words: Sequence[str]) -> Iterator[str]:
    """Those on the command line."""
    for flag, value in flags_in(words):
        part, _, key = flag.rstrip("+").partition(".")
        name = key.removeprefix("init_args.").removesuffix(".class_path")
        if part == "model" and name == "optimizer":
            yield from _optimizer(value)
        elif (part in ("model", "data") and name in ("", "class_path")) or (part == "trainer" and name in _SLOTS):
            yield from [value] if isinstance(value, str) and _is_path(value) else _paths_in(value)


def _optimizer(value: Any) -> Iterator[str]:
    """The import path of an optimiser, given as such or with its arguments."""
    name, arguments = (value.get("class_path"), value.get("init_args")) if isinstance(value, dict) else (value, None)
    if isinstance(name, str) and _is_path(name):
        yield check_optimizer(name, arguments if isinstance(arguments, dict) else {})


def _paths_in(value: Any) -> Iterator[str]:
    """Every ``class_path`` inside maps and lists."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        if key == "class_path" and isinstance(inner, str) and _is_path(inner):
            yield inner
        else:
            yield from _paths_in(inner)


def _is_path(text: str) -> bool:
    return all(part.isidentifier() for part in text.split("."))


def _names_in(module: str) -> frozenset[str]:
    """Names that a module has; empty where its source does not tell all of them."""
    tree = source_of(module)
    if tree is None:
        return frozenset()
    names: set[str] = set()
    for line in ast.walk(tree):
        if isinstance(line, ast.ClassDef | ast.FunctionDef):
            names.add(line.name)
        elif isinstance(line, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in line.names}
        elif isinstance(line, ast.Name) and isinstance(line.ctx, ast.Store):
            names.add(line.id)
    return frozenset() if names & {"*", "__getattr__"} else frozenset(names)
