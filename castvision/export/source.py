"""What is exported: a checkpoint's model, its recipe, and the figures of the run it comes from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision.errors import CheckpointError
from castvision.files import read_json
from castvision.inference.predictor import LoadedParts, describe
from castvision.models.recipe import Recipe, load
from castvision.models.segmenter import native_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

METRICS = "metrics.json"
_FIGURES = {"best": "best", "last": "last"}
"""Names of a run's checkpoints, and where their figures stand in its metrics.json."""


@dataclass(frozen=True)
class Source:
    """A model to export.

    Attributes:
        path: The checkpoint.
        recipe: With ``input``.
        model: In evaluation mode, on the CPU.
        metrics: The run's metrics.json; empty where none stands beside the checkpoint.
    """

    path: Path
    recipe: Recipe
    model: nn.Module
    metrics: Mapping[str, Any]

    @property
    def parts(self) -> LoadedParts:
        """The facts needed to feed the model, as prediction has them."""
        recipe = self.recipe
        return describe(self.model, recipe.model_name, recipe.task, recipe.class_names, recipe.input)

    @property
    def figures(self) -> dict[str, float]:
        """Of this very checkpoint on the run's held-out images; empty where the run did not measure it."""
        found = self.metrics.get(_FIGURES.get(self.path.stem, ""), {})
        numbers = {name: value for name, value in found.items() if isinstance(value, int | float)}
        return {name: float(value) for name, value in numbers.items() if name != "step"}

    def facts(self) -> dict[str, Any]:
        """Everything prediction needs to know of the model, as plain values: it travels with each export."""
        parts = self.parts
        return {
            **self.recipe.to_dict(),
            "class_names": list(parts.class_names),
            "patch_size": list(parts.patch_size),
            "native_size": list(native_size(parts.backbone)),
            "fixed_size": None if parts.fixed_size is None else list(parts.fixed_size),
        }


def load_source(path: str | Path) -> Source:
    """Read a checkpoint for export.

    Args:
        path: A checkpoint of ``castvision train``.

    Returns:
        The model and what is known of it.

    Raises:
        FileNotFoundError: No such file.
        CheckpointError: Damaged, or of another program.
        ValueError: A model that no format carries.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"expected a checkpoint such as best.ckpt, got the folder {str(path)!r}; a folder in timm's layout is an "
            "export already, and of a run's folder name the checkpoint"
        )
    recipe, model = load(path)
    if recipe.task == "slides":
        raise ValueError(
            f"cannot export {str(path)!r}: it classifies bags of embeddings, which no format here carries; "
            "castvision predict takes the checkpoint itself"
        )
    if recipe.input is None:
        raise CheckpointError(
            f"expected a checkpoint that says how its images were normalised, got {str(path)!r}; train with a data "
            "module of castvision.training"
        )
    metrics = path.parent / METRICS
    content = read_json(metrics) if metrics.is_file() else {}
    return Source(path, recipe, model.eval(), content if isinstance(content, dict) else {})


def as_text(facts: Mapping[str, Any]) -> str:
    """Facts as JSON on one line."""
    return json.dumps(facts, ensure_ascii=False)
