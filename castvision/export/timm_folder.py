"""A folder in timm's layout: ``config.json``, ``model.safetensors`` and a model card.

timm loads it by ``timm.create_model("local-dir:FOLDER")`` (with castvision imported, where the model is one of ours),
transformers by its ``TimmWrapper``. What both know nothing of (how near and far was put in, how images were brought to
their size) stands in ``config.json`` under "castvision", which `castvision.inference.predictor.load_model` reads.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from timm.models import save_for_hf

from castvision.data.transforms.cropping import KEPT_SHARE
from castvision.models.convert import split_options

if TYPE_CHECKING:
    from pathlib import Path

    from castvision.export.source import Source
    from castvision.models.recipe import Recipe

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_RESIZING: dict[str, dict[str, Any]] = {
    "crop": {"interpolation": "bilinear", "crop_pct": KEPT_SHARE, "crop_mode": "center"},
    "fit": {"interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "border"},
    "none": {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"},
}
"""`InputFormat.resize` in timm's words; for "fit", and for "none" at other sizes than training's, the nearest."""


def check_fits(source: Source) -> None:
    """Refuse what timm's layout has no place for.

    Raises:
        ValueError: A segmenter, whose head is none of timm's.
    """
    if source.recipe.task == "segmentation":
        raise ValueError(
            f"timm's layout holds no head of segmentation ({source.recipe.head}), and timm and transformers know "
            "none; export it by --format onnx or --format torch, or give castvision predict the checkpoint itself"
        )


def write_folder(model: Any, recipe: Recipe, folder: Path, facts: dict[str, Any]) -> None:
    """Write ``config.json`` with our facts in it, and ``model.safetensors``.

    Args:
        model: Of timm or of ours.
        recipe: How it was built; its ``input``, where there is one, says how images are normalised.
        folder: It is made.
        facts: Stored under "castvision".
    """
    arguments, _ = split_options(recipe.model_name, recipe.model_kwargs)
    arguments.pop("pretrained", None)
    seen = recipe.input
    shown: dict[str, Any] = {}
    if seen is not None:
        mean, std = (list(each) * (seen.in_chans // len(each)) for each in (seen.mean, seen.std))
        shown = {"mean": mean, "std": std, "input_size": [seen.in_chans, *seen.img_size], **_RESIZING[seen.resize]}
    names = list(recipe.class_names)
    save_for_hf(
        model,
        str(folder),
        model_config={"castvision": facts, **({"label_names": names} if names else {})},
        model_args=arguments,
        data_config=shown or None,
        safe_serialization=True,
    )
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config.get("model_args", {}).pop("num_classes", None)  # stands outside, and transformers would hand it over twice
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
