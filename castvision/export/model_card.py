"""README.md of an exported folder: what the model is, what its run measured, how to load it. Nothing is invented."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import castvision

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.export.source import Source

_PIPELINES = {
    "classification": "image-classification",
    "multilabel": "image-classification",
    "segmentation": "image-segmentation",
}
_MOST_CLASSES = 100
_USAGE = {
    "hf": """\
## Use

```python
import timm
import castvision  # registers the models

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
```

`castvision predict IMAGES --model FOLDER --output out` shows it images as in training.
""",
    "onnx": """\
## Use

`castvision predict IMAGES --model model.onnx --output out` shows it images as in training, without torch. Inputs are
`image` (batch, channels, height, width), normalised float32, and for segmentation `pixel_mask` (batch, height, width),
true where a pixel holds data; what else there is to know stands in the file's metadata under `castvision`, as JSON.
""",
    "torch": """\
## Use

```python
import torch

model = torch.export.load("model.pt2").module()
```

It is called with `image` (batch, channels, height, width), normalised float32, and for segmentation with `pixel_mask`
(batch, height, width), true where a pixel holds data.
""",
}


def model_card(source: Source, title: str, kind: str, told: Sequence[str] = ()) -> str:
    """The card as Markdown, with the front matter that hubs read.

    Args:
        source: The model and its run.
        title: Of the page.
        kind: "hf", "onnx" or "torch".
        told: What was measured of the export itself, a sentence each.
    """
    recipe, metrics = source.recipe, source.metrics
    pipeline = _PIPELINES.get(recipe.task, "image-feature-extraction")
    library = {"hf": "timm", "onnx": "onnx", "torch": "pytorch"}[kind]
    front = f"---\nlibrary_name: {library}\npipeline_tag: {pipeline}\ntags:\n- timm\n- castvision\n---\n"
    parts = [front, f"# {title}\n", _about(source)]
    parts += [_table("Figures on the run's held-out images", ["metric", "value"], _figure_rows(source))]
    if not source.figures:
        parts += ["No figures of this checkpoint stand beside it.\n"]
    parts += [_table("Figures of each class", *_class_table(metrics) if source.path.stem == "best" else ([], []))]
    parts += [_table("Training", ["", ""], _training_rows(metrics)), _exported(told), _USAGE[kind]]
    return "\n".join(part for part in parts if part)


def _about(source: Source) -> str:
    recipe, seen = source.recipe, source.recipe.input
    names = list(recipe.class_names)
    shown = ", ".join(_cell(name) for name in names[:_MOST_CLASSES])
    more = f" and {len(names) - _MOST_CLASSES} more" if len(names) > _MOST_CLASSES else ""
    lines = [f"A `{recipe.model_name}` trained with castvision {castvision.__version__}: {recipe.task}."]
    lines += [f"Classes, in the order of the outputs: {shown}{more}."] if names else []
    if seen is not None:
        height, width = seen.img_size
        lines.append(
            f"Trained on images of {height} × {width} pixels in {seen.in_chans} channels, normalised by mean "
            f"{_numbers(seen.mean)} and std {_numbers(seen.std)}"
            + (" in the files' own units." if seen.keeps_units else " of values brought to 0..1.")
        )
        lines += [f"Pixels were {seen.mpp:g} {seen.mpp_unit} wide."] if seen.mpp is not None else []
    return "\n".join(lines) + "\n"


def _figure_rows(source: Source) -> list[list[str]]:
    return [[name, f"{value:.4f}"] for name, value in sorted(source.figures.items())]


def _class_table(metrics: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    rows = [row for row in metrics.get("per_class", []) if isinstance(row, dict)]
    columns = list(rows[0]) if rows else []
    return columns, [[_shown(row.get(name)) for name in columns] for row in rows[:_MOST_CLASSES]]


def _training_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    training, model = metrics.get("training", {}), metrics.get("model", {})
    rows = [[name.replace("_", " "), _shown(value)] for name, value in training.items()]
    rows += [["parameters", f"{model['parameters']:,}"]] if "parameters" in model else []
    rows += [["started from", _shown(metrics["started_from"])]] if metrics.get("started_from") else []
    rows += [["hardware", _shown(metrics["hardware"])]] if "hardware" in metrics else []
    rows += [[name, _shown(value)] for name, value in metrics.get("versions", {}).items()]
    return rows


def _exported(told: Sequence[str]) -> str:
    return "## This file\n\n" + "\n".join(f"- {line}" for line in told) + "\n" if told else ""


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else _cell(str(value))


def _cell(text: str) -> str:
    """Text that breaks no table and no page."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _numbers(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"
