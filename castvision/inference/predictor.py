"""A model ready to be shown images: from a name, a checkpoint of a training run, or a folder in timm's layout."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from castvision.checkpoint_facts import CHECKPOINT_KEY
from castvision.data.input_format import InputFormat
from castvision.data.reading.overview import make_context
from castvision.data.reading.pixels import nearest
from castvision.data.transforms.model_input import to_model_input
from castvision.errors import CheckpointError, one_line
from castvision.files import read_json
from castvision.inference.values import check_pixels
from castvision.models.centres import CentreSegmenter
from castvision.models.checkpoint_file import check_finite
from castvision.models.convert import change_attention, convert, split_options
from castvision.models.recipe import Recipe, TaskName, load, near_misses
from castvision.models.segmenter import unwrap
from castvision.models.shipped import shipped_file
from castvision.visualization.clusters import cluster_maps, clustered_layers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.reading.pixels import Mask, Pixels
    from castvision.inference.fitted import FittedModel
    from castvision.visualization.clusters import ClusterMap

DEFAULT_PATCHES = 64
"""Patches along the longer side of the largest input by default: at most 4,096 tokens, seconds on a CPU."""
LOCAL = "local-dir:"


@dataclass(frozen=True)
class LoadedParts:
    """A model and the facts needed to feed it.

    Attributes:
        model: (B, C, height, width) to logits, (B, num_classes) or (B, num_classes, height, width).
        backbone: The part with clusters.
        name: For people.
        task: None for an untrained model; "features" for a trained one without classes.
        class_names: One for each class; empty where there are none.
        input: The images it was made for or trained on.
        patch_size: (height, width) of a patch.
        fixed_size: (height, width) if the model takes no other.
        label_map: What the labels in the masks that it was trained on mean, see
            `castvision.data.reading.labels.LabelMap`; None = they are class numbers.
    """

    model: nn.Module = field(repr=False)
    backbone: nn.Module = field(repr=False)
    name: str
    task: TaskName | None
    class_names: tuple[str, ...]
    input: InputFormat
    patch_size: tuple[int, int]
    fixed_size: tuple[int, int] | None
    label_map: Mapping[str, int | str] | None = None

    @property
    def has_clusters(self) -> bool:
        """Whether any block routes tokens into clusters."""
        return bool(clustered_layers(self.backbone))

    @property
    def context_size(self) -> tuple[int, int] | None:
        """(height, width) of the whole image that it wants to be shown with each tile; None = tiles alone."""
        return getattr(self.model, "context_size", None)


@dataclass(frozen=True)
class Prediction:
    """What a trained model says of one image.

    Attributes:
        task: "classification", "multilabel" or "segmentation".
        probabilities: (num_classes,) float32: of the image, or the mean over a segmentation's pixels, sum 1; of several
            labels each on its own.
        mask: (height, width) int64 class of each pixel at the input's size; None for a classification.
    """

    task: TaskName
    probabilities: Tensor
    mask: Tensor | None = None


class Predictor:
    """A model in evaluation mode with everything needed to feed it an image. Made by `load_model`.

    Args:
        parts: The model and its facts.
        device: Where it runs.
    """

    takes_arrays = False
    """The model is given tensors."""

    def __init__(self, parts: LoadedParts, device: torch.device | str = "cpu") -> None:
        self.parts = parts
        self.device = torch.device(device)
        self.model: nn.Module = parts.model.to(self.device).eval()

    @property
    def is_trained(self) -> bool:
        """Whether weights were loaded; an untrained model gives clusters, no predictions."""
        return self.parts.task is not None

    @property
    def has_classes(self) -> bool:
        """Whether it was trained to predict, and not for its features alone."""
        return self.parts.task not in (None, "features")

    @property
    def gives_centres(self) -> bool:
        """Whether it was trained to give centres of objects and offsets to them, beside classes."""
        return isinstance(self.model, CentreSegmenter)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class; empty where there are none."""
        return self.parts.class_names

    def input_size(self, image_size: tuple[int, int], max_size: int | None = None) -> tuple[int, int]:
        """The size an image is resized to: whole patches, and enlarged only where it must be, or was in training.

        Args:
            image_size: (height, width) of the image.
            max_size: Longer side; None = 64 patches, at most 1,024 pixels; for a model of whole images its training
                size.

        Returns:
            (height, width), multiples of the patch size; the model's own size if it takes only that.

        Raises:
            ValueError: ``max_size`` smaller than a patch.
        """
        if self.parts.fixed_size is not None:
            return self.parts.fixed_size
        patch, fits = self.parts.patch_size, self.parts.input.resize == "fit"
        largest = math.inf if fits and max_size is None else 1.0
        if max_size is None:
            patches = DEFAULT_PATCHES * max(patch)
            is_of_wholes = fits or self.parts.task in ("classification", "multilabel")
            max_size = max(self.parts.input.img_size) if is_of_wholes else patches
        if max_size < max(patch):
            raise ValueError(f"expected max_size >= {max(patch)} (one patch of {self.parts.name}), got {max_size=}")
        scale = min(largest, max_size / max(image_size))
        height, width = (
            _whole_patches(side * scale, step, max_size) for side, step in zip(image_size, patch, strict=True)
        )
        return height, width

    def prepare(self, image: Pixels, max_size: int | None = None) -> Tensor:
        """Pixels to the model's input.

        Args:
            image: (height, width, channels), any numeric dtype.
            max_size: See `input_size`.

        Returns:
            (1, C, height', width') float32 on the model's device.

        Raises:
            TypeError: No array.
            ValueError: The image's channels do not fit the model, or its values are of another unit than in training.
        """
        seen = self.parts.input
        check_pixels(image, seen)
        size = self.input_size((image.shape[0], image.shape[1]), max_size)
        tensor = to_model_input(image, seen.in_chans, seen.mean, seen.std, size, keep_units=seen.keeps_units)
        return tensor[None].to(self.device)

    def prepare_whole(self, image: Pixels) -> Tensor:
        """Pixels of a whole image to a classifier's input, as its training did; see `InputFormat.resize`.

        Args:
            image: (height, width, channels), any numeric dtype.

        Returns:
            (1, C, height', width') float32 on the model's device.

        Raises:
            TypeError: No array.
            ValueError: The image's channels do not fit the model, or its values are of another unit than in training.
        """
        seen = self.parts.input
        check_pixels(image, seen)
        if seen.resize == "none":
            return self.prepare(image)
        if seen.resize == "crop":
            from castvision.data.transforms.crop import cropping_transform, rgb_picture

            tensor = cropping_transform(seen.img_size, seen.mean, seen.std)(rgb_picture(image, seen.mean))
        else:
            from castvision.data.datasets.samples import to_channels
            from castvision.data.transforms.augmentation import SampleTransform

            transform = SampleTransform(max(seen.img_size), seen.mean, seen.std)
            tensor = transform.image(to_channels(image, seen.in_chans, "the image"))
        return tensor[None].to(self.device)

    @torch.inference_mode()
    def predict(self, prepared: Tensor, is_hole: Mask | None = None) -> Prediction:
        """Predict one prepared image.

        Args:
            prepared: (1, C, height, width), from `prepare`.
            is_hole: (height', width') of the image before it was prepared, True where it holds no data, which a
                segmentation leaves out of all clusters; None = nowhere.

        Returns:
            The prediction, on the CPU.

        Raises:
            ValueError: The model is untrained, or has no classes; more images than one.
        """
        if len(prepared) != 1:
            raise ValueError(f"expected one image (1, C, height, width), got {tuple(prepared.shape)}; call it for each")
        if self.parts.task is None:
            raise ValueError(f"{self.parts.name} is untrained: its prediction would mean nothing; give a checkpoint")
        if self.parts.task == "features":
            from castvision.inference.suited import NO_CLASSES

            raise ValueError(f"{self.parts.name} {NO_CLASSES}")
        told = self._told(prepared, is_hole)
        logits = self.model(prepared, **told).float()[0].cpu()  # (num_classes[, height, width])
        if self.parts.task == "multilabel":
            return Prediction("multilabel", logits.sigmoid())
        probabilities = logits.softmax(dim=0)
        if self.parts.task == "classification":
            return Prediction("classification", probabilities)
        return Prediction("segmentation", probabilities.mean(dim=(1, 2)), probabilities.argmax(dim=0))

    def fitted(self, dtype: np.dtype[Any], name: str) -> FittedModel:
        """The predictor of tiles whose one tile is a whole image brought to the size of training.

        Args:
            dtype: Of the image's pixels.
            name: Of the image, for messages.
        """
        from castvision.inference.fitted import FittedModel

        return FittedModel(self, dtype, name)

    def _told(self, prepared: Tensor, is_hole: Mask | None) -> dict[str, Tensor]:
        """What a model is told beside an image."""
        told = self._surroundings(prepared)
        if is_hole is not None and is_hole.any() and self.parts.task == "segmentation":
            height, width = prepared.shape[-2:]
            rows, columns = nearest(0, height, is_hole.shape[0], height), nearest(0, width, is_hole.shape[1], width)
            told["pixel_mask"] = torch.from_numpy(~is_hole[np.ix_(rows, columns)])[None].to(self.device)
        return told

    def _surroundings(self, prepared: Tensor) -> dict[str, Tensor]:
        """For a model that wants the whole image beside a tile: here the tile is the whole image."""
        size = self.parts.context_size
        if size is None:
            return {}
        return {
            "context": make_context(prepared, size),
            "window": torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=self.device),
        }

    @torch.inference_mode()
    def cluster_maps(self, prepared: Tensor, is_hole: Mask | None = None) -> list[ClusterMap]:
        """Windows and clusters of each block that has them, as the model forms them when it predicts.

        Args:
            prepared: (1, C, height, width), from `prepare`.
            is_hole: See `predict`.

        Returns:
            One entry for each block with clusters; empty for a model without any.
        """
        if not self.parts.has_clusters:
            return []
        return cluster_maps(self.model, prepared, **self._told(prepared, is_hole))


def _whole_patches(side: float, patch: int, max_size: int) -> int:
    return max(1, min(round(side / patch), max_size // patch)) * patch


def load_model(
    source: str | Path, *, device: torch.device | str = "cpu", seed: int = 0, attention: str | None = None
) -> Predictor:
    """Load a model for prediction.

    Args:
        source: A checkpoint of a training run (``.ckpt``), a folder in timm's layout (``config.json`` and
            ``model.safetensors``,
            also written ``local-dir:FOLDER``), the name of a trained model that comes with the package
            (`castvision.models.shipped`), or of a registered model, which is then built untrained.
        device: Where it runs.
        seed: For an untrained model's weights; the global random state stays as it is.
        attention: "near_far" or "full", for a ViT of timm's, whatever it was trained with; it then takes images of any
            size. None = as it was trained.

    Returns:
        The predictor.

    Raises:
        FileNotFoundError: ``source`` looks like a path and does not exist.
        ValueError: Unknown name, damaged file, a checkpoint of another architecture, or ``attention`` for a model of
            ours, which has its own.
        TypeError: ``attention`` for a model that cannot be converted.
    """
    return Predictor(load_parts(str(source), seed=seed, attention=attention), device)


def load_parts(source: str, *, seed: int = 0, attention: str | None = None) -> LoadedParts:
    """The model of a source and its facts, on the CPU; see `load_model`."""
    if source.startswith(LOCAL):
        return _from_folder(Path(source.removeprefix(LOCAL)), attention)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, attention)
    if path.is_file():
        return _from_checkpoint(path, attention)
    if path.suffix in {".ckpt", ".pt", ".pth", ".safetensors"} or len(path.parts) > 1:
        raise FileNotFoundError(f"no such checkpoint or folder: {source!r}; check the path")
    if (file := shipped_file(source)) is not None:
        return _from_checkpoint(file, attention)
    return _from_name(source, seed, attention)


def _from_name(name: str, seed: int, attention: str | None) -> LoadedParts:
    if not timm.is_model(name):
        raise ValueError(
            f"unknown model {name!r}{near_misses(name)}; name a registered model, a checkpoint or a folder"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False)
    return describe(model, name, None, attention=attention)


def _from_folder(folder: Path, attention: str | None) -> LoadedParts:
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"expected config.json and model.safetensors in {str(folder)!r}, found no config.json")
    try:
        model = timm.create_model(f"{LOCAL}{folder}", pretrained=True)
    except Exception as error:  # a reader of damaged bytes raises anything
        raise CheckpointError(f"cannot load a model from {str(folder)!r}: {one_line(error, 300)}") from error
    check_finite(model.state_dict(), folder)
    facts = read_json(config_file).get(CHECKPOINT_KEY)
    if facts is not None:
        return _with_facts(model, facts, folder, attention)
    names = model.pretrained_cfg.get("label_names") or ()
    name = f"{model.pretrained_cfg.get('architecture', type(model).__name__)} ({folder.resolve().name})"
    classes = tuple(str(name) for name in names)
    return describe(model, name, "classification", classes, attention=attention)


def _with_facts(model: nn.Module, facts: Mapping[str, Any], folder: Path, attention: str | None) -> LoadedParts:
    """A folder that castvision wrote: it says how images were shown, and whether near and far was put in."""
    own = {key: value for key, value in facts.items() if key not in ("patch_size", "native_size", "fixed_size")}
    try:
        recipe = Recipe.from_dict(own)
        _, conversion = split_options(recipe.model_name, recipe.model_kwargs)
        if conversion is not None:
            convert(model, **conversion)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"cannot use config.json in {str(folder)!r}: {one_line(error, 300)}") from error
    name = f"{recipe.model_name} ({folder.resolve().name})"
    return describe(model, name, recipe.task, recipe.class_names, recipe.input, attention)


def _from_checkpoint(path: Path, attention: str | None) -> LoadedParts:
    recipe, model = load(path)
    if recipe.input is None:
        raise ValueError(
            f"expected a checkpoint that says how its images were normalised, got {str(path)!r}, trained with loaders "
            "that say nothing of it; train with a data module of castvision.training, or give task.recipe an input "
            "(castvision.models.recipe.InputFormat) before training"
        )
    if recipe.task == "slides":
        raise ValueError(
            f"{str(path)!r} was trained on embeddings of slides' tiles: give castvision predict or evaluate the .h5 "
            "files that castvision embed --write tiles writes"
        )
    parts = describe(model, recipe.model_name, recipe.task, recipe.class_names, recipe.input, attention)
    return replace(parts, label_map=recipe.label_map)


def class_names_or_default(names: tuple[str, ...], num_classes: int) -> tuple[str, ...]:
    """The given names if there is one for each class, ImageNet's for 1,000 classes, else "class 0", "class 1", ..."""
    if len(names) == num_classes:
        return names
    if num_classes == 1000:
        from timm.data import ImageNetInfo

        info = ImageNetInfo("imagenet-1k")
        return tuple(str(info.index_to_description(index)).split(",")[0] for index in range(num_classes))
    return tuple(f"class {index}" for index in range(num_classes))


def describe(
    model: nn.Module,
    name: str,
    task: TaskName | None,
    class_names: tuple[str, ...] = (),
    trained_on: InputFormat | None = None,
    attention: str | None = None,
) -> LoadedParts:
    """The facts of a model: those of its training, or, where it has none of ours, timm's; with another attention."""
    backbone: Any = unwrap(model)
    if attention is not None:
        change_attention(backbone, attention)
    config: Mapping[str, Any] = timm.data.resolve_model_data_config(backbone)
    channels, *size = config["input_size"]
    in_chans = int(getattr(backbone, "in_chans", channels))
    mean, std = (_channel_values(config[key], in_chans) for key in ("mean", "std"))
    embed = getattr(backbone, "patch_embed", None)
    native = getattr(embed, "img_size", None)
    patch = getattr(embed, "patch_size", None) or max(info["reduction"] for info in backbone.feature_info)
    num_classes = int(getattr(model, "num_classes", len(class_names)))
    colours = ("red", "green", "blue") if in_chans == 3 else None  # as all of timm's weights want them
    return LoadedParts(
        model=model,
        backbone=backbone,
        name=name,
        task=task,
        class_names=() if task in (None, "features") else class_names_or_default(class_names, num_classes),
        input=trained_on or InputFormat(in_chans, native or _pair(size), mean, std, channel_names=colours),
        patch_size=_pair(patch),
        fixed_size=native if getattr(embed, "strict_img_size", False) else None,
    )


def _channel_values(values: Sequence[float], in_chans: int) -> tuple[float, ...]:
    numbers = tuple(float(value) for value in values)
    return numbers if len(numbers) == in_chans else (sum(numbers) / len(numbers),)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value[0]), int(value[1])) if isinstance(value, (tuple, list)) else (int(value), int(value))
