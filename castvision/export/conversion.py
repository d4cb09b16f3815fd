"""A pretrained ViT with near and far put in, as a recipe and a model: what ``castvision convert`` writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm

from castvision.models.convert import check_name, convert
from castvision.models.recipe import Recipe, load, near_misses
from castvision.models.weights import explained

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn


def converted(source: str, options: Mapping[str, Any], weights: Path | None = None) -> tuple[Recipe, nn.Module]:
    """Put near and far into a model.

    Args:
        source: The name of a ViT of timm's, whose trained weights are fetched, or a checkpoint of ``castvision train``.
        options: For `castvision.convert`, such as ``num_clusters``.
        weights: A file with the weights of the model of this name, in place of those that timm fetches.

    Returns:
        The recipe, which says how near and far was put in, and the model, in evaluation mode.

    Raises:
        ValueError: No such model, one of ours, which has near and far already, or options that do not fit.
        TypeError: A model that cannot be converted.
        ConnectionError: The weights cannot be fetched.
    """
    path = Path(source)
    recipe, model = _of_file(path, weights) if path.is_file() else _of_name(source, options, weights)
    _refuse_ours(recipe.model_name)
    if recipe.task == "segmentation":
        raise ValueError(
            f"timm's layout holds no head of segmentation ({recipe.head}); train with attention: near_far, or choose "
            "it while predicting by --attention near_far"
        )
    arguments = {key: value for key, value in recipe.model_kwargs.items() if key != "pretrained"}
    convert(model, **options)
    return replace(recipe, model_kwargs={**arguments, "attention": "near_far", **options}), model.eval()


def _refuse_ours(name: str) -> None:
    if name.startswith("cast_"):
        raise ValueError(f"{name} has near and far already; write its checkpoint for others by castvision export")


def _of_file(path: Path, weights: Path | None) -> tuple[Recipe, nn.Module]:
    if weights is not None:
        raise ValueError(f"--weights belong to the name of a model, got the checkpoint {str(path)!r}; leave them out")
    recipe, model = load(path)
    if "attention" in recipe.model_kwargs:
        raise ValueError(
            f"{str(path)!r} was trained with attention={recipe.model_kwargs['attention']!r}: it is converted already; "
            "write it for others by castvision export"
        )
    return recipe, model


def _of_name(name: str, options: Mapping[str, Any], weights: Path | None) -> tuple[Recipe, nn.Module]:
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(f"expected the name of a ViT of timm's or a checkpoint, got {name!r}{near_misses(name)}")
    _refuse_ours(name)
    check_name(name, **options)
    overlay = {} if weights is None else {"pretrained_cfg_overlay": {"file": str(weights)}}
    with explained(name, True):
        model: Any = timm.create_model(name, pretrained=True, **overlay)
    classes = int(model.num_classes)
    return Recipe("classification" if classes else "features", name, classes), model
