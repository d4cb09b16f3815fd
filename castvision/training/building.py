"""From names in a configuration to a model, with errors that name the key to change."""

from __future__ import annotations

import difflib
from functools import partial
from typing import TYPE_CHECKING, Any

import timm

import castvision  # noqa: F401  # registers the models
from castvision.models.context import create_context_segmenter
from castvision.models.segmenter import create_segmenter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

# Keys the tasks set themselves.
_RESERVED = ("num_classes",)


def build_classifier(model_name: str, num_classes: int, model_kwargs: Mapping[str, Any] | None = None) -> nn.Module:
    """Any timm model with ``num_classes`` logits.

    Args:
        model_name: A registered model.
        num_classes: Logits.
        model_kwargs: For ``timm.create_model``.

    Returns:
        The model.

    Raises:
        ValueError: Unknown model or argument, or a value the model refuses.
    """
    check_names(model_name, num_classes, model_kwargs)
    model: nn.Module = _explained(
        model_name, lambda: timm.create_model(model_name, num_classes=num_classes, **(model_kwargs or {}))
    )
    return model


def build_segmenter(
    model_name: str,
    num_classes: int,
    model_kwargs: Mapping[str, Any] | None = None,
    *,
    context_size: Sequence[int] | None = None,
    **parts: Any,
) -> nn.Module:
    """A `Segmenter` on any timm backbone, or a `ContextSegmenter` on one of ours.

    Args:
        model_name: A registered model.
        num_classes: Logits per pixel.
        model_kwargs: For ``timm.create_model``.
        context_size: Of the whole image shown beside a tile; None = a plain `Segmenter`.
        **parts: ``head``, ``head_kwargs`` and ``out_indices`` of `create_segmenter`.

    Returns:
        The model.

    Raises:
        ValueError: Unknown model, head or argument, or a value one of them refuses.
    """
    check_names(model_name, num_classes, model_kwargs)
    create: Callable[..., nn.Module] = create_segmenter
    if context_size is not None:
        create = partial(create_context_segmenter, context_size=context_size)
    model: nn.Module = _explained(
        model_name, lambda: create(model_name, num_classes, model_kwargs=model_kwargs, **parts)
    )
    return model


def check_names(model_name: str, num_classes: int, model_kwargs: Mapping[str, Any] | None) -> None:
    """Refuse what can be refused without building anything.

    Raises:
        ValueError: Unknown model, fewer than two classes, or a key the task sets itself.
    """
    if not timm.is_model(model_name.split(".")[0]) and not model_name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        near = difflib.get_close_matches(model_name, [*timm.list_models("cast_*"), *timm.list_models()], n=2)
        hint = f", did you mean {' or '.join(dict.fromkeys(near))}?" if near else "; timm.list_models() names them all"
        raise ValueError(f"unknown model {model_name=}{hint}")
    if num_classes < 2:
        raise ValueError(f"expected num_classes >= 2, got {num_classes=}")
    for key in _RESERVED:
        if key in (model_kwargs or {}):
            raise ValueError(f"expected no {key!r} in model_kwargs (the task sets it), got {model_kwargs=}")


def _explained(model_name: str, build: Callable[[], Any]) -> Any:
    try:
        return build()
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot build {model_name} with these model_kwargs: {reason}") from error
