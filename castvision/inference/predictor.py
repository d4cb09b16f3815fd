"""A model ready to be shown images: from a name, a checkpoint of a training run, or a folder in timm's layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from castvision.data.reading.overview import make_context
from castvision.data.reading.pixels import Pixels, to_model_input
from castvision.inference.loading import LoadedParts, load_parts

if TYPE_CHECKING:
    from pathlib import Path

    from castvision.visualization.clusters import ClusterMap

DEFAULT_PATCHES = 64
"""Patches along the longer side of the largest input by default: at most 4,096 tokens, seconds on a CPU."""


@dataclass(frozen=True)
class Prediction:
    """What a trained model says of one image.

    Attributes:
        task: "classification", "multilabel" or "segmentation".
        probabilities: (num_classes,) float32: of the image, or the mean over a segmentation's pixels, sum 1; of several
            labels each on its own.
        mask: (height, width) int64 class of each pixel at the input's size; None for a classification.
    """

    task: Literal["classification", "multilabel", "segmentation"]
    probabilities: Tensor
    mask: Tensor | None = None


class Predictor:
    """A model in evaluation mode with everything needed to feed it an image. Made by `load_model`.

    Args:
        parts: The model and its facts.
        device: Where it runs.
    """

    def __init__(self, parts: LoadedParts, device: torch.device | str = "cpu") -> None:
        self.parts = parts
        self.device = torch.device(device)
        self.model: nn.Module = parts.model.to(self.device).eval()

    @property
    def is_trained(self) -> bool:
        """Whether weights were loaded; an untrained model gives clusters, no predictions."""
        return self.parts.task is not None

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class; empty for an untrained model."""
        return self.parts.class_names

    def input_size(self, image_size: tuple[int, int], max_size: int | None = None) -> tuple[int, int]:
        """The size an image is resized to: longer side at most ``max_size``, whole patches, never enlarged without
        need.

        Args:
            image_size: (height, width) of the image.
            max_size: Longer side; None = 64 patches, at most 1,024 pixels; for a trained classifier its training size.

        Returns:
            (height, width), multiples of the patch size; the model's own size if it takes only that.

        Raises:
            ValueError: ``max_size`` smaller than a patch.
        """  # noqa: D205
        if self.parts.fixed_size is not None:
            return self.parts.fixed_size
        patch = self.parts.patch_size
        if max_size is None:
            patches = DEFAULT_PATCHES * max(patch)
            max_size = patches if self.parts.task in (None, "segmentation") else max(self.parts.input_size)
        if max_size < max(patch):
            raise ValueError(f"expected max_size >= {max(patch)} (one patch of {self.parts.name}), got {max_size=}")
        scale = min(1.0, max_size / max(image_size))
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
            ValueError: The image's channels do not fit the model.
        """
        size = self.input_size((image.shape[0], image.shape[1]), max_size)
        parts = self.parts
        tensor = to_model_input(image, parts.in_chans, parts.mean, parts.std, size, keep_units=parts.keeps_units)
        return tensor[None].to(self.device)

    @torch.inference_mode()
    def predict(self, prepared: Tensor) -> Prediction:
        """Predict one prepared image.

        Args:
            prepared: (1, C, height, width), from `prepare`.

        Returns:
            The prediction, on the CPU.

        Raises:
            ValueError: The model is untrained.
        """
        if self.parts.task is None:
            raise ValueError(f"{self.parts.name} is untrained: its prediction would mean nothing; give a checkpoint")
        logits = self.model(prepared, **self._surroundings(prepared)).float()[0].cpu()  # (num_classes[, height, width])
        if self.parts.task == "multilabel":
            return Prediction("multilabel", logits.sigmoid())
        probabilities = logits.softmax(dim=0)
        if self.parts.task == "classification":
            return Prediction("classification", probabilities)
        return Prediction("segmentation", probabilities.mean(dim=(1, 2)), probabilities.argmax(dim=0))

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
    def cluster_maps(self, prepared: Tensor) -> list[ClusterMap]:
        """Windows and clusters of each CAST block, as the model forms them when it predicts.

        Args:
            prepared: (1, C, height, width), from `prepare`.

        Returns:
            One entry for each block with clusters; empty for a model without any.
        """
        from castvision.visualization.clusters import cluster_maps

        if not self.parts.has_clusters:
            return []
        return cluster_maps(self.model, prepared, **self._surroundings(prepared))


def _whole_patches(side: float, patch: int, max_size: int) -> int:
    return max(1, min(round(side / patch), max_size // patch)) * patch


def load_model(source: str | Path, *, device: torch.device | str = "cpu", seed: int = 0) -> Predictor:
    """Load a model for prediction.

    Args:
        source: A checkpoint of a training run (``.ckpt``), a folder in timm's layout (``config.json`` and
            ``model.safetensors``,
            also written ``local-dir:FOLDER``), or the name of a registered model, which is then built untrained.
        device: Where it runs.
        seed: For an untrained model's weights; the global random state stays as it is.

    Returns:
        The predictor.

    Raises:
        FileNotFoundError: ``source`` looks like a path and does not exist.
        ValueError: Unknown name, damaged file, or a checkpoint of another architecture.
    """
    return Predictor(load_parts(str(source), seed=seed), device)
