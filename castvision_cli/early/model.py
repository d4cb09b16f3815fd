"""The model of a configuration, built before Lightning is imported, and without values.

The task builds it again, with what it takes from the data, and refuses the same in the same words, seconds later.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

from castvision_cli.early.light import silently
from castvision_cli.early.signatures import flags_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.models.recipe import Recipe

_KINDS = {
    "ClassificationTask": "classification",
    "DistillationTask": "features",
    "InstanceTask": "segmentation",
    "MultiLabelTask": "multilabel",
    "SegmentationTask": "segmentation",
}
"""What the logits of each of our tasks are that trains a network of timm's or ours."""
_HEAD = "UpsamplingHead"
_POWER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def check_model(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a model that cannot be built, and weights to start from that are another's.

    Args:
        words: The command line, without the configurations.
        contents: Of the configurations, the last one last; what cannot be told from them is let through.

    Raises:
        ValueError: As `castvision.models.recipe.build` and `castvision.models.checkpoint.initialize_from` say it.
    """
    kind, arguments = _task(words, contents)
    if "lightning" in sys.modules or kind not in _KINDS or not isinstance(arguments.get("model_name"), str):
        return
    import torch

    with silently():
        try:
            with torch.device("meta"):
                _build(kind, arguments)
        except (ValueError, TypeError, RuntimeError):  # maybe of a model that computes with values while it is built
            try:
                _build(kind, arguments)
            except TypeError:  # an argument of another type: jsonargparse says so
                return


def _build(kind: str, arguments: Mapping[str, Any]) -> None:
    from castvision.models.checkpoint import freeze, initialize_from
    from castvision.models.recipe import build

    model = build(_recipe(kind, arguments))
    if arguments.get("init_from"):
        initialize_from(model, arguments["init_from"])
    if isinstance(arguments.get("freeze"), list):
        freeze(model, arguments["freeze"])
    if _KINDS[kind] == "segmentation":
        _check_losses(arguments)


def _task(words: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The class of the model and its arguments; no class if the command line says more than single values."""
    kind, arguments = "", dict[str, Any]()
    for content in contents:
        section = content.get("model")
        if isinstance(section, dict):
            kind = str(section.get("class_path", kind)).removeprefix("castvision.training.")
            arguments |= section.get("init_args") or {}
    for flag, value in flags_in(words):
        part, _, key = flag.partition(".")
        name, *deeper = key.removeprefix("init_args.").split(".")
        if part != "model" or name == "optimizer":
            continue
        if not name.isidentifier() or name == "class_path" or len(deeper) > 1:
            return "", {}
        if deeper and not isinstance(arguments.setdefault(name, {}), dict):
            return "", {}
        if deeper:
            arguments[name] = {**arguments[name], deeper[0]: value}
        else:
            arguments[name] = value
    return kind, _as_numbers(arguments)


def _as_numbers(value: Any) -> Any:
    """Values with 1e-3 as a number, which YAML's older rules take for text and jsonargparse does not."""
    if isinstance(value, dict):
        return {key: _as_numbers(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_as_numbers(inner) for inner in value]
    return float(value) if isinstance(value, str) and _POWER.fullmatch(value) else value


def _recipe(kind: str, arguments: Mapping[str, Any]) -> Recipe:
    """As the task makes it, with two classes where the data will say how many."""
    from castvision.models.recipe import Recipe, with_attention

    task: Any = _KINDS[kind]
    attention = arguments.get("attention", "near_far" if kind == "DistillationTask" else None)
    kwargs = with_attention(arguments.get("model_kwargs"), attention)
    parts: dict[str, Any] = {}
    if task == "segmentation":
        indices, context_size = arguments.get("out_indices"), arguments.get("context_size")
        parts = {"head": arguments.get("head", _HEAD), "head_kwargs": arguments.get("head_kwargs") or {}}
        parts |= {"out_indices": indices and tuple(indices), "context_size": context_size and tuple(context_size)}
        parts["centres"] = kind == "InstanceTask"
    classes = 0 if task == "features" else arguments.get("num_classes") or 2
    return Recipe(task, arguments["model_name"], classes, model_kwargs={**kwargs, "pretrained": False}, **parts)


def _check_losses(arguments: Mapping[str, Any]) -> None:
    """As the task makes them; where the data will say how many classes there are, as many as there are weights."""
    from castvision.losses import losses_of

    weights = arguments.get("class_weights")
    classes = arguments.get("num_classes") or (len(weights) if isinstance(weights, list) else 2)
    losses_of(arguments.get("loss"), weights, classes, arguments.get("label_smoothing", 0.0))
