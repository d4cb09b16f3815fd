"""The arguments of a configuration's classes: whether they take them, and of these types.

What cannot be told from their sources is let through, for later checks to decide.
"""

from __future__ import annotations

import ast
import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision_cli.early.sources import OPEN, Arguments, arguments_of, imports_of, source_of
from castvision_cli.early.values import check_model_name, check_value

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

_OWN = frozenset({"config", "run_dir", "ema", "early_stopping", "seed_everything", "print_config", "help"})
_PARTS = ("model", "data", "trainer")
_TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
_SCHEDULE = "castvision.training.optim.Schedule"
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
                _check_nested(part, name, deeper[-1], value)
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


def check_named(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse configurations of a run that name no task, or no data, where the command line does not either.

    Raises:
        ValueError: It says which is missing.
    """
    if any("help" in word or word.startswith("--print_config") for word in words):
        return
    for part, example in (("model", "SegmentationTask"), ("data", "SegmentationDataModule")):
        sections = [content.get(part) for content in contents]
        is_stated = any(isinstance(each, str) or (isinstance(each, dict) and "class_path" in each) for each in sections)
        is_stated |= any(f"{part}.class_path" in content for content in contents)  # a key with dots is one, too
        if not is_stated and not _is_named(part, words):
            raise ValueError(
                f"expected {part}.class_path in the configuration, such as {example}, got none; add it, or give a "
                "shipped configuration first (castvision train --help lists them) and yours after it"
            )


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
    if key == "schedule" and not isinstance(value, dict) and not (isinstance(value, str) and Path(value).is_file()):
        raise ValueError(f"expected {part}.schedule.warmup and {part}.schedule.final, got {part}.schedule={value!r}")
    if key in _NESTED and isinstance(value, dict):
        inside = value.get("init_args") or value
        for name, inner in inside.items() if isinstance(inside, dict) else ():
            _check_nested(part, key, str(name), inner)
    if part != "model" or not isinstance(value, str):
        return
    annotation = (known or {}).get(key)
    if key == "model_name" and is_closed and isinstance(annotation, ast.Name):  # slides have a Literal
        check_model_name(value, "model_name=")
    heads = imports_of(source_of("castvision.heads"))
    if key == "head" and heads and value not in heads:
        raise ValueError(f"expected head in {sorted(heads)}, got head={value!r}")


def _check_nested(part: str, key: str, name: str, value: Any) -> None:
    """Refuse an argument of the task's schedule, or a value of its optimiser, that cannot be."""
    known = arguments_of(_SCHEDULE) if key == "schedule" else None
    check_argument(f"{part}.{key}", name, known)
    check_value(f"{part}.{key}.{name}", value, (known or {}).get(name))


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
    if known is None or OPEN in known or key in known or key in ("", "class_path", "init_args", "dict_kwargs", "help"):
        return
    near = difflib.get_close_matches(key, sorted(known), n=1)
    full = f"{part}.{key}" if part else key
    hint = f"did you mean {full.removesuffix(key)}{near[0]}?" if near else f"expected one of {', '.join(sorted(known))}"
    where = f" in {part}" if part else ""
    raise ValueError(f"{key!r} is not accepted{where}: {hint}")


def _is_named(part: str, words: Sequence[str]) -> bool:
    return any(word.partition("=")[0] in (f"--{part}", f"--{part}.class_path") for word in words)


def _class_named(part: str, words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> Arguments | None:
    """What the class of a part takes; None = it is not known which, or not where its source is."""
    if part == "trainer":
        return arguments_of(_TRAINER)
    if _is_named(part, words):
        return None
    named = [content[part]["class_path"] for content in contents if "class_path" in (content.get(part) or {})]
    return arguments_of(str(named[-1])) if named else None
