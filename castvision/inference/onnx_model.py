"""A model that ``castvision export --format onnx`` wrote, run by onnxruntime; torch need not be there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.data.input_format import InputFormat, input_format, pair
from castvision.data.reading.pixels import from_planes, in_channels
from castvision.data.transforms.cropping import crop
from castvision.data.transforms.fitting import fit, fitted_size, resized_linearly
from castvision.data.transforms.model_input import to_input_array
from castvision.errors import CheckpointError, one_line
from castvision.inference.runtimes import softmax

if TYPE_CHECKING:
    from collections.abc import Mapping

    from castvision.data.reading.pixels import Pixels

FACTS = "castvision"
"""The entry of the metadata in which a file's facts stand, as JSON."""


@dataclass(frozen=True)
class OnnxParts:
    """What is known of an exported model; see `castvision.inference.predictor.LoadedParts`."""

    name: str
    task: str
    class_names: tuple[str, ...]
    input: InputFormat
    patch_size: tuple[int, int]
    native_size: tuple[int, int]
    fixed_size: tuple[int, int] | None
    label_map: Mapping[str, int | str] | None = None
    context_size: None = None


@dataclass(frozen=True)
class ArrayPrediction:
    """See `castvision.inference.predictor.Prediction`."""

    task: str
    probabilities: Pixels


class OnnxPredictor:
    """An exported model with everything needed to feed it an image.

    Args:
        path: The file.

    Raises:
        ImportError: onnxruntime is missing.
        CheckpointError: Damaged, or of another program.
    """

    takes_arrays = True
    device = "cpu"
    is_trained = True

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("models in ONNX are run by onnxruntime: pip install onnxruntime") from error
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # of onnxruntime's own kinds
            raise CheckpointError(f"cannot read {str(path)!r}, is it damaged? {one_line(error, 200)}") from error
        stored = self.session.get_modelmeta().custom_metadata_map.get(FACTS)
        if stored is None:
            raise CheckpointError(
                f"expected a file of castvision export, got {str(path)!r}, which says nothing of classes and "
                "normalisation; export the checkpoint by castvision export --format onnx"
            )
        self.parts = _parts(stored, path)
        gives = self.session.get_outputs()[0].shape[1]
        if self.has_classes and isinstance(gives, int) and gives != len(self.class_names):
            raise CheckpointError(
                f"expected a score for each of {len(self.class_names)} classes from {str(path)!r}, got {gives}; export "
                "the checkpoint again"
            )

    @property
    def has_classes(self) -> bool:
        """Whether it was trained to predict, and not for its features alone."""
        return self.parts.task != "features"

    @property
    def gives_centres(self) -> bool:
        """Never: an exported model gives classes."""
        return False

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name for each class."""
        return self.parts.class_names

    def model(self, image: Any, pixel_mask: Any = None) -> Any:
        """Logits, image by image where pixels are missing, as `castvision.models.Segmenter` does.

        Args:
            image: (B, C, height, width) float32, normalised.
            pixel_mask: (B, height, width) bool; None = all pixels are real.

        Returns:
            (B, num_classes, height, width) or (B, num_classes) float32.

        Raises:
            ValueError: A size the model does not take.
        """
        if self.parts.task != "segmentation":
            return self._run({"image": image})
        if pixel_mask is None:
            return self._run({"image": image, "pixel_mask": np.ones((len(image), *image.shape[2:]), dtype=bool)})
        if image.shape[2:] == self.parts.native_size:
            return self._run({"image": image, "pixel_mask": pixel_mask})
        logits = []
        for one, mask in zip(image, pixel_mask, strict=True):
            rows, cols = (_extent(mask.any(axis=axis)) for axis in (1, 0))
            feeds = {"image": one[None, :, :rows, :cols], "pixel_mask": mask[None, :rows, :cols]}
            part = self._run(feeds)[0]
            logits.append(np.pad(part, ((0, 0), (0, mask.shape[0] - rows), (0, mask.shape[1] - cols))))
        return np.stack(logits)

    def _run(self, feeds: dict[str, Any]) -> Any:
        try:
            return self.session.run(None, {name: np.ascontiguousarray(value) for name, value in feeds.items()})[0]
        except Exception as error:  # of onnxruntime's own kinds
            height, width = feeds["image"].shape[2:]
            raise ValueError(
                f"{self.parts.name} takes no images of {height} × {width} pixels: {one_line(error, 200)}; choose "
                f"another --tile, such as {max(self.parts.input.img_size)}"
            ) from error

    def prepare_whole(self, image: Pixels) -> Any:
        """Pixels of a whole image to a classifier's input; see `castvision.inference.predictor.Predictor`.

        Args:
            image: (height, width, channels), any numeric dtype.

        Returns:
            (1, C, height', width') float32.

        Raises:
            ValueError: The image's channels do not fit the model.
        """
        seen = self.parts.input
        if seen.resize == "crop":
            return crop(image, seen)[None]
        if seen.resize == "fit":
            return fit(in_channels(image, seen.in_chans), max(seen.img_size), seen.mean, seen.std)[0][None]
        size = self.parts.fixed_size
        if size is None:
            most = max(seen.img_size)
            scale = min(1.0, most / max(image.shape[:2]))
            size = pair([
                max(1, min(round(side * scale / step), most // step)) * step
                for side, step in zip(image.shape[:2], self.parts.patch_size, strict=True)
            ])  # fmt: skip
        return to_input_array(image, seen.in_chans, seen.mean, seen.std, size, keep_units=seen.keeps_units)[None]

    def predict(self, prepared: Any) -> ArrayPrediction:
        """Predict one prepared image.

        Args:
            prepared: (1, C, height, width), from `prepare_whole`.
        """
        logits = self.model(prepared)[0].astype(np.float32)
        if self.parts.task == "multilabel":
            return ArrayPrediction(self.parts.task, 1 / (1 + np.exp(-logits)))
        return ArrayPrediction(self.parts.task, softmax(logits, 0))

    def fitted(self, dtype: np.dtype[Any], name: str) -> FittedArrays:
        """The predictor of tiles whose one tile is a whole image; see `castvision.inference.predictor.Predictor`."""
        return FittedArrays(self, dtype)


class FittedArrays:
    """`castvision.inference.fitted.FittedModel` without torch.

    Args:
        predictor: The model, trained on images brought to one size ("fit").
        dtype: Of the image's pixels.
    """

    missing = float("nan")
    takes_arrays = True

    def __init__(self, predictor: OnnxPredictor, dtype: np.dtype[Any]) -> None:
        self.predictor, self.dtype, self.gives = predictor, dtype, len(predictor.class_names)

    def __call__(self, batch: Any, *, pixel_mask: Any = None) -> Any:
        """See `castvision.inference.fitted.FittedModel`."""
        seen, outputs = self.predictor.parts.input, []
        for planes in batch:
            pixels = from_planes(planes, self.dtype)
            image, is_real = fit(in_channels(pixels, seen.in_chans), max(seen.img_size), seen.mean, seen.std)
            logits = self.predictor.model(image[None], None if is_real.all() else is_real[None])[0]
            rows, cols = fitted_size(pixels.shape[:2], max(seen.img_size))
            outputs.append(resized_linearly(np.ascontiguousarray(logits[:, :rows, :cols]), planes.shape[-2:]))
        return np.stack(outputs)


def _extent(occupied: Any) -> int:
    """One beyond the last True; 1 where there is none."""
    return int(np.flatnonzero(occupied)[-1]) + 1 if occupied.any() else 1


def _parts(stored: str, path: Path) -> OnnxParts:
    try:
        facts = json.loads(stored)
        label_map = facts["label_map"]
        return OnnxParts(
            name=f"{facts['model_name']} ({path.name})",
            task=str(facts["task"]),
            class_names=tuple(str(name) for name in facts["class_names"]),
            input=input_format(facts),
            patch_size=pair(facts["patch_size"]),
            native_size=pair(facts["native_size"]),
            fixed_size=None if facts["fixed_size"] is None else pair(facts["fixed_size"]),
            label_map=None if label_map is None else dict(label_map),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"cannot use the facts in {str(path)!r}: {one_line(error, 200)}; export it anew"
        ) from error
