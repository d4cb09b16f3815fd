"""Model sources to modules: registered names, folders in timm's layout, checkpoints of training runs."""

from __future__ import annotations

import difflib
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import timm
import torch

from castvision.layers import CastAttention
from castvision.models.context import create_context_segmenter
from castvision.models.segmenter import Segmenter, create_segmenter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

Task = Literal["classification", "multilabel", "segmentation"]
LOCAL = "local-dir:"


@dataclass(frozen=True)
class LoadedParts:
    """A model and the facts needed to feed it.

    Attributes:
        model: (B, C, height, width) to logits, (B, num_classes) or (B, num_classes, height, width).
        backbone: The part with clusters; the model itself for a classifier.
        name: For people.
        task: None for an untrained model.
        class_names: One for each class; empty for an untrained model.
        mean: Per channel, in units of 0..1, or of the file (``keeps_units``).
        std: Per channel.
        input_size: (height, width) it was made or trained for.
        patch_size: (height, width) of a patch.
        fixed_size: (height, width) if the model takes no other.
        keeps_units: Trained on the units of the files: signed and float images are not brought to 0..1.
    """

    model: nn.Module = field(repr=False)
    backbone: nn.Module = field(repr=False)
    name: str
    task: Task | None
    class_names: tuple[str, ...]
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: tuple[int, int]
    patch_size: tuple[int, int]
    fixed_size: tuple[int, int] | None
    keeps_units: bool = False

    @property
    def has_clusters(self) -> bool:
        """Whether any block routes tokens into clusters."""
        return any(isinstance(module, CastAttention) for module in self.backbone.modules())

    @property
    def context_size(self) -> tuple[int, int] | None:
        """(height, width) of the whole image that it wants to be shown with each tile; None = tiles alone."""
        return getattr(self.model, "context_size", None)


def load_parts(source: str, *, seed: int = 0) -> LoadedParts:
    """See `castvision.inference.predictor.load_model`."""
    if source.startswith(LOCAL):
        return _from_folder(Path(source.removeprefix(LOCAL)))
    path = Path(source)
    if path.is_dir():
        return _from_folder(path)
    if path.is_file():
        return _from_checkpoint(path)
    if path.suffix in {".ckpt", ".pt", ".pth", ".safetensors"} or len(path.parts) > 1:
        raise FileNotFoundError(f"no such checkpoint or folder: {source!r}; check the path")
    return _from_name(source, seed)


def _from_name(name: str, seed: int) -> LoadedParts:
    if not timm.is_model(name):
        raise ValueError(f"unknown model {name!r}{_near_miss(name)}; name a registered model, a checkpoint or a folder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False)
    return _describe(model, model, name, None, ())


def _near_miss(name: str) -> str:
    near = difflib.get_close_matches(name, [*timm.list_models("cast_*"), *timm.list_models()], n=2, cutoff=0.75)
    return f", did you mean {' or '.join(dict.fromkeys(near))}?" if near else ""


def _from_folder(folder: Path) -> LoadedParts:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"expected config.json and model.safetensors in {str(folder)!r}, found no config.json")
    try:
        model = timm.create_model(f"{LOCAL}{folder}", pretrained=True)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"cannot load a model from {str(folder)!r}: {one_line(error)}") from error
    names = model.pretrained_cfg.get("label_names") or ()
    name = f"{model.pretrained_cfg.get('architecture', type(model).__name__)} ({folder.resolve().name})"
    return _describe(model, model, name, "classification", tuple(str(name) for name in names))


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut to ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def class_names_or_default(names: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """The given names if there is one for each class, ImageNet's for 1,000 classes, else "class 0", "class 1", ..."""
    if len(names) == num_classes:
        return names
    if num_classes == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        return tuple(str(info.index_to_description(place)).split(",")[0] for place in range(num_classes))
    return tuple(f"class {place}" for place in range(num_classes))


def _describe(
    model: nn.Module, backbone: nn.Module, name: str, task: Task | None, class_names: tuple[str, ...]
) -> LoadedParts:
    config: Mapping[str, Any] = timm.data.resolve_model_data_config(backbone)
    channels, height, width = config["input_size"]
    in_chans = int(getattr(backbone, "in_chans", channels))
    mean, std = (_channel_values(config[key], in_chans) for key in ("mean", "std"))
    embed = getattr(backbone, "patch_embed", None)
    patch = getattr(embed, "patch_size", None) or max(info["reduction"] for info in backbone.feature_info)  # type: ignore[union-attr]
    fixed = getattr(embed, "img_size", None) if getattr(embed, "strict_img_size", False) else None
    num_classes = int(getattr(model, "num_classes", len(class_names)))
    return LoadedParts(
        model=model,
        backbone=backbone,
        name=name,
        task=task,
        class_names=() if task is None else class_names_or_default(class_names, num_classes),
        in_chans=in_chans,
        mean=mean,
        std=std,
        input_size=getattr(embed, "img_size", None) or (int(height), int(width)),
        patch_size=_pair(patch),
        fixed_size=fixed,
    )


def _channel_values(values: Any, in_chans: int) -> tuple[float, ...]:  # timm's configurations are untyped
    numbers = tuple(float(value) for value in values)
    return numbers if len(numbers) == in_chans else (sum(numbers) / len(numbers),)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))


def _from_checkpoint(path: Path) -> LoadedParts:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"cannot read checkpoint {str(path)!r} (damaged, or of another program): {one_line(error, 120)}"
        ) from error
    facts = content.get("castvision") if isinstance(content, dict) else None
    if not isinstance(facts, dict) or "state_dict" not in content:
        raise ValueError(
            f"expected a checkpoint written by castvision train, got {str(path)!r} without its facts; "
            "export other models with timm.models.save_for_hf and give that folder"
        )
    try:
        model = _rebuild(facts)
        _load_weights(model, content["state_dict"])
        parts = _describe(model, _backbone_of(model), facts["model_name"], facts["task"], tuple(facts["class_names"]))
        size = (int(facts["img_size"][0]), int(facts["img_size"][1]))
        mean, std = tuple(facts["mean"]), tuple(facts["std"])
        keeps_units = bool(facts.get("keeps_units", False))
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"cannot use checkpoint {str(path)!r}: {one_line(error)}") from error
    in_chans = int(facts["in_chans"])
    return replace(parts, in_chans=in_chans, mean=mean, std=std, input_size=size, keeps_units=keeps_units)


def _rebuild(facts: Mapping[str, Any]) -> nn.Module:
    name = facts["model_name"]
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(
            f"unknown model {name!r}{_near_miss(name)}; it was made by another version of castvision or timm"
        )
    kwargs = {**facts["model_kwargs"], "pretrained": False}  # all weights come from the checkpoint: no download
    with torch.random.fork_rng(devices=[]):
        if facts["task"] in ("classification", "multilabel"):
            model: nn.Module = timm.create_model(name, num_classes=facts["num_classes"], **kwargs)
            return model
        parts = {key: facts[key] for key in ("head", "head_kwargs", "out_indices")}
        context_size = facts.get("context_size")
        if context_size is None:
            return create_segmenter(name, facts["num_classes"], model_kwargs=kwargs, **parts)
        return create_context_segmenter(
            name, facts["num_classes"], context_size=context_size, model_kwargs=kwargs, **parts
        )


def _backbone_of(model: nn.Module) -> nn.Module:
    backbone = model.backbone if isinstance(model, Segmenter) else model
    return getattr(backbone, "model", backbone)  # without timm's feature wrapper


def _load_weights(model: nn.Module, saved: Mapping[str, torch.Tensor]) -> None:
    weights = {key.removeprefix("model."): value for key, value in saved.items() if key.startswith("model.")}
    own = model.state_dict()
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
    model.load_state_dict(weights)
