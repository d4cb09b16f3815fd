"""Models trained on whole images brought to one size: shown images the same way, by the transform of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from castvision.data.datasets.batch import Batch
from castvision.data.datasets.samples import to_channels
from castvision.data.reading.pixels import from_planes
from castvision.data.transforms.augmentation import SampleTransform
from castvision.data.transforms.fitting import fitted_size

if TYPE_CHECKING:
    from castvision.data.reading.pixels import Pixels
    from castvision.inference.predictor import Predictor


class FittedModel:
    """A predictor for `castvision.inference.tiled_inference` whose one tile is the whole image.

    Args:
        predictor: The model, trained on images brought to one size ("fit").
        dtype: Of the image's pixels.
        name: Of the image, for messages.

    Attributes:
        missing: What values without data are in the tile; they become the mean, as in training.
        gives: Channels of its output.
    """

    missing = float("nan")

    def __init__(self, predictor: Predictor, dtype: np.dtype[Any], name: str) -> None:
        self.predictor, self.dtype, self.name = predictor, dtype, name
        self.gives = len(predictor.class_names)
        seen = predictor.parts.input
        self.transform = SampleTransform(max(seen.img_size), seen.mean, seen.std)

    def __call__(self, batch: Tensor, *, pixel_mask: Tensor | None = None) -> Tensor:
        """(B, channels, height, width) float32 in the image's range to (B, classes, height, width).

        NaN where a value is missing; ``pixel_mask``, which every model of tiles is given, says no more than that.
        """
        outputs = []
        for planes in batch:
            pixels = from_planes(planes.cpu().numpy(), self.dtype)
            logits, _ = self._shown(pixels, np.zeros(pixels.shape[:2], np.uint8))
            outputs.append(_enlarged(logits, planes.shape[-2:]).to(batch.device))
        return torch.stack(outputs)

    @torch.inference_mode()
    def measure(self, pixels: Pixels, mask: Pixels) -> tuple[Pixels, Pixels]:
        """The model's classes and the true ones, as training counts them: at the size it is shown.

        Args:
            pixels: (height, width, channels) of the whole image.
            mask: (height, width) uint8, 255 = ignored.

        Returns:
            (height', width') uint8, and the same of the truth.
        """
        logits, target = self._shown(pixels, mask)
        return logits.argmax(dim=0).cpu().numpy().astype(np.uint8), target.numpy().astype(np.uint8)

    def _shown(self, pixels: Pixels, mask: Pixels) -> tuple[Tensor, Tensor]:
        """(classes, height', width') logits and (height', width') mask of the image at the size the model is shown."""
        device, in_chans = self.predictor.device, self.predictor.parts.input.in_chans
        image, target, extras, _ = Batch(*self.transform.pair(to_channels(pixels, in_chans, self.name), mask))
        is_real = extras["pixel_mask"]
        told = {} if is_real.all() else {"pixel_mask": is_real[None].to(device)}
        logits: Tensor = self.predictor.model(image[None].to(device), **told)
        rows, columns = fitted_size(pixels.shape[:2], image.shape[-1])  # the padding lies below and to the right
        return logits[0, :, :rows, :columns], target[:rows, :columns]


def _enlarged(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits[None].float(), size=tuple(size), mode="bilinear", align_corners=False)[0]
