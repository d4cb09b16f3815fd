"""What a checkpoint remembers of a model, and a model built, saved and loaded by it.

Training, evaluation, prediction, the demo and the benchmarks all go through these functions.
"""

from __future__ import annotations

import difflib
import inspect
import re
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import timm
import torch
from timm.utils import unwrap_model

from castvision.checkpoint_facts import CHECKPOINT_KEY
from castvision.data.input_format import InputFormat, input_format, pair
from castvision.errors import CheckpointError, one_line
from castvision.ignored import IGNORED
from castvision.models import checkpoint_file
from castvision.models.cast_vit import CastVisionTransformer
from castvision.models.centres import create_centre_segmenter
from castvision.models.checkpoint import task_weights
from castvision.models.context import create_context_segmenter
from castvision.models.convert import convert, split_options
from castvision.models.segmenter import create_segmenter, unwrap
from castvision.models.slide_classifier import SlideClassifier
from castvision.models.weights import explained
from castvision.ops import AttentionOptions
from castvision.peers.registry import OPTIONS as PEER_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

TaskName = Literal["classification", "multilabel", "segmentation", "slides", "features"]
_FORMAT = 1
_OPTIONAL = {
    "format",
    "centres",
    "context_size",
    "keeps_units",
    "label_map",
    "level",
    "mpp",
    "mpp_unit",
    "resize",
    "bands",
    "channel_names",
    "encoder",
}
_OF_INPUT = {"in_chans", "img_size", "mean", "std"}
_HUBS = ("hf-hub:", "hf_hub:", "local-dir:")


@dataclass(frozen=True)
class Recipe:
    """How to build a model again, and how to feed it.

    Attributes:
        task: What its logits are; "features": it has none.
        model_name: A registered timm model, of the whole or of the backbone; of "slides" the way bags are pooled, see
            `castvision.models.slide_classifier.POOLS`.
        model_kwargs: For ``timm.create_model``, without ``num_classes``; with ``attention`` ("near_far" or "full"), any
            ViT of timm's is converted, and further options are those of :func:`castvision.convert`.
        num_classes: Logits; 0 for "features".
        class_names: One for each class.
        head: A class of `castvision.heads`; None for tasks whose classes are of whole images.
        head_kwargs: For the head.
        out_indices: The feature maps the head is given, see `castvision.models.segmenter.feature_layout`.
        context_size: (height, width) of the whole image shown beside a tile; None = tiles alone.
        centres: A segmenter that gives centres of objects and offsets, too, see `castvision.models.centres`.
        input: What it was trained on; None before it has met its data.
        label_map: From the labels in mask files, as text, to classes or "ignore", see
            `castvision.data.reading.labels.LabelMap`; None = labels are class numbers.
    """

    task: TaskName
    model_name: str
    num_classes: int
    class_names: tuple[str, ...] = ()
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    head_kwargs: Mapping[str, Any] = field(default_factory=dict)
    out_indices: tuple[int, ...] | None = None
    context_size: tuple[int, int] | None = None
    centres: bool = False
    input: InputFormat | None = None
    label_map: Mapping[str, int | str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values without nesting, as they stand in a checkpoint."""
        facts = {key: value for key, value in vars(self).items() if key != "input"}
        facts |= {} if self.input is None else asdict(self.input)
        for name in ("bands", "channel_names", "encoder", "centres"):
            if not facts.get(name):
                facts.pop(name, None)  # so that older versions read what they know
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}
        return {
            "format": _FORMAT,
            **plain,
            "model_kwargs": dict(self.model_kwargs),
            "head_kwargs": dict(self.head_kwargs),
            "label_map": None if self.label_map is None else dict(self.label_map),
        }

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Recipe:
        """The reverse of `to_dict`, of checkpoints of any age.

        Raises:
            ValueError: Keys that are missing or unknown, another format, or values that are none.
        """
        known = {"format", *cls.__dataclass_fields__, *InputFormat.__dataclass_fields__} - {"input"}
        has_input = bool(
            InputFormat.__dataclass_fields__.keys() & set(facts)
        )  # none of them where a task was trained with loaders of its own
        optional = _OPTIONAL if has_input else _OPTIONAL | _OF_INPUT
        missing, unknown = sorted(known - optional - set(facts)), sorted(map(str, set(facts) - known))
        if facts.get("format", _FORMAT) != _FORMAT:
            raise ValueError(
                f"expected facts of format {_FORMAT}, got format {facts['format']!r}: of a newer castvision?"
            )
        if missing or unknown:
            told = [f"{', '.join(keys)} {what}" for keys, what in ((missing, "missing"), (unknown, "unknown")) if keys]
            raise ValueError(f"expected the facts of a castvision checkpoint, got {' and '.join(told)}")
        if facts["task"] not in get_args(TaskName):
            raise ValueError(f"expected task in {get_args(TaskName)}, got {facts['task']!r}")
        try:
            seen = input_format(facts) if has_input else None
            context_size, out_indices = facts.get("context_size"), facts["out_indices"]
            label_map = facts.get("label_map")
            return cls(
                task=facts["task"],
                model_name=str(facts["model_name"]),
                num_classes=int(facts["num_classes"]),
                class_names=tuple(str(name) for name in facts["class_names"]),
                model_kwargs=dict(facts["model_kwargs"]),
                head=facts["head"],
                head_kwargs=dict(facts["head_kwargs"] or {}),
                out_indices=None if out_indices is None else tuple(int(index) for index in out_indices),
                context_size=None if context_size is None else pair(context_size),
                centres=facts.get("centres", False) is True,
                input=seen,
                label_map=None if label_map is None else {str(label): of for label, of in label_map.items()},
            )
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(
                f"expected the facts of a castvision checkpoint, got others: {one_line(error, 300)}"
            ) from error


def with_attention(model_kwargs: Mapping[str, Any] | None, attention: str | None) -> dict[str, Any]:
    """A model's arguments with ``attention``, wherever it was written.

    Args:
        model_kwargs: See `Recipe`.
        attention: As it stands beside ``model_name``; None = not there.

    Returns:
        A new dict.

    Raises:
        ValueError: Both places name one, and they differ.
    """
    arguments = dict(model_kwargs or {})
    if attention is None:
        return arguments
    if arguments.setdefault("attention", attention) != attention:
        raise ValueError(
            f"expected attention in one place, got attention={attention!r} and {arguments['attention']!r} in "
            "model_kwargs; leave one of them out"
        )
    return arguments


def near_misses(model_name: str) -> str:
    """The question whether a similar registered model was meant, to follow a name; empty if there is none."""
    near = difflib.get_close_matches(model_name, [*timm.list_models("cast_*"), *timm.list_models()], n=2)
    return f", did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""


def build(recipe: Recipe) -> nn.Module:
    """Build a model.

    Args:
        recipe: Of any task; what it was trained on makes no difference.

    Returns:
        The model, untrained unless ``model_kwargs`` says ``pretrained: True``.

    Raises:
        ValueError: Unknown model, head or argument, fewer than two classes (more than none for "features"), or a value
            one of them refuses.
        ConnectionError: Pretrained weights cannot be fetched.
    """
    name, kwargs = recipe.model_name, recipe.model_kwargs
    if recipe.task == "slides":
        return _build_slide_classifier(recipe)
    if not timm.is_model(name.split(".")[0]) and not name.startswith(_HUBS):
        raise ValueError(
            f"unknown model model_name={name!r}{near_misses(name) or '; timm.list_models() names them all'}"
        )
    _check_num_classes(recipe)
    if "num_classes" in kwargs:
        raise ValueError(
            f"expected no 'num_classes' in model_kwargs (the task sets it), got model_kwargs={dict(kwargs)}"
        )
    create: Callable[..., nn.Module] = timm.create_model
    kwargs, conversion = split_options(name, kwargs)
    arguments = dict(kwargs)
    if recipe.task == "segmentation":
        parts = {"head": recipe.head, "head_kwargs": recipe.head_kwargs, "out_indices": recipe.out_indices}
        arguments = {"model_kwargs": kwargs, **parts}
        create = _creator(recipe)
    try:
        with explained(name, bool(kwargs.get("pretrained"))):
            model = create(name, num_classes=recipe.num_classes, **arguments)
        if conversion is not None:
            convert(unwrap(model), **conversion)
        return model
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        told = one_line(error, 2000) + _near_argument(name, str(error))
        raise ValueError(f"cannot build {name} with these model_kwargs: {told}") from error


def _check_num_classes(recipe: Recipe) -> None:
    count = recipe.num_classes
    if recipe.task == "features" and count:
        raise ValueError(f"expected num_classes=0 of a model without classes, got num_classes={count}")
    if recipe.task != "features" and count < 2:
        raise ValueError(
            f"expected num_classes >= 2, got num_classes={count}: one class alone needs no model; name "
            "what is none of it as a class, too"
        )
    if recipe.task == "segmentation" and count > IGNORED:
        raise ValueError(
            f"expected at most {IGNORED} classes of pixels, got num_classes={count}: the label {IGNORED} stands for "
            "ignored ones; join some"
        )


def _creator(recipe: Recipe) -> Callable[..., nn.Module]:
    """What builds a segmenter."""
    if recipe.centres and recipe.context_size is not None:
        raise ValueError("expected no context_size of a model that gives centres of objects; leave one of them out")
    if recipe.context_size is not None:
        return partial(create_context_segmenter, context_size=recipe.context_size)
    return create_centre_segmenter if recipe.centres else create_segmenter


def _build_slide_classifier(recipe: Recipe) -> nn.Module:
    kwargs = {name: value for name, value in recipe.model_kwargs.items() if name != "pretrained"}
    if recipe.num_classes < 2:
        raise ValueError(f"expected num_classes >= 2, got num_classes={recipe.num_classes}")
    if "in_chans" not in kwargs:
        raise ValueError("expected in_chans in model_kwargs, the channels of the embeddings, got none; add it")
    try:
        return SlideClassifier(recipe.model_name, num_classes=recipe.num_classes, **kwargs)
    except TypeError as error:
        raise ValueError(f"cannot build {recipe.model_name} with these model_kwargs: {one_line(error)}") from error


def _near_argument(model_name: str, message: str) -> str:
    """The question whether a similar argument of our backbones was meant, where an unknown one is complained of."""
    unknown = re.search(r"unexpected (?:keyword )?argument '(\w+)'", message)
    if unknown is None or "did you mean" in message or not model_name.startswith("cast_vit_"):
        return ""
    own = (CastVisionTransformer, timm.models.VisionTransformer)
    known = [
        *AttentionOptions._fields,
        *PEER_OPTIONS,
        *(name for each in own for name in inspect.signature(each).parameters),
    ]
    near = difflib.get_close_matches(unknown[1], known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def save(path: str | Path, recipe: Recipe, model: nn.Module) -> None:
    """Write a checkpoint that `load` reads, as training does.

    Args:
        path: The file; what is there is replaced.
        recipe: With ``input``.
        model: Built by it; also in what averages its weights, compiles it or runs it in several processes.

    Raises:
        ValueError: A model that the recipe does not build, such as a whole task: nobody could read the file.
    """
    stored = unwrap_model(model).state_dict()
    try:
        _check_fits(_rebuilt(recipe).state_dict(), stored)
    except ValueError as error:
        raise ValueError(
            f"expected the model of the recipe (of a task, task.model), got a {type(model).__name__}: {error}"
        ) from error
    weights = {f"model.{key}": value for key, value in stored.items()}
    checkpoint_file.write({CHECKPOINT_KEY: recipe.to_dict(), "state_dict": weights}, path)


def load(path: str | Path) -> tuple[Recipe, nn.Module]:
    """Read a checkpoint of a training run; no code in it is run, and nothing is downloaded.

    Args:
        path: The file.

    Returns:
        The recipe, with ``input`` unless the task was trained with loaders that say nothing of it, and the model with
        the checkpoint's weights, on the CPU.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: A damaged file, one of another program, of another architecture than it says, or with values
            that no training gives.
    """
    path = str(path)
    content = checkpoint_file.read(path)
    facts = content.get(CHECKPOINT_KEY) if isinstance(content, dict) else None
    if not isinstance(facts, dict) or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(
            f"expected a checkpoint written by castvision train, got {path!r} without its facts; "
            "export other models with timm.models.save_for_hf and give that folder"
        )
    try:
        recipe = Recipe.from_dict(facts)
        if recipe.task != "slides" and not timm.is_model(recipe.model_name.split(".")[0]):
            raise ValueError(
                f"unknown model {recipe.model_name!r}{near_misses(recipe.model_name)}; "
                "it was made by another version of castvision or timm"
            )
        model = _rebuilt(recipe)
        weights = task_weights(content["state_dict"])
        checkpoint_file.check_finite(weights, path)
        _check_fits(model.state_dict(), weights)
        model.load_state_dict(weights)
    except CheckpointError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"cannot use checkpoint {path!r}: {one_line(error, 300)}") from error
    return recipe, model


def _rebuilt(recipe: Recipe) -> nn.Module:
    """A model whose weights are given to it: none are fetched, and random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]):
        return build(replace(recipe, model_kwargs={**recipe.model_kwargs, "pretrained": False}))


def _check_fits(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    wrong = [
        f"{key} is {tuple(weights[key].shape)} in the file, {tuple(own[key].shape)} in the model"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    missing = [f"{key} is missing in the file" for key in own if key not in weights]
    unknown = [f"{key} is unknown to the model" for key in weights if key not in own]
    problems = [*wrong, *missing, *unknown]
    if problems:
        raise ValueError(
            f"it holds another architecture than the one it names: {len(problems)} of {len(own)} weights differ; "
            f"{'; '.join(problems[:2])}"
        )
