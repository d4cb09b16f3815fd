"""Models trained on whole images brought to one size: shown images the same way, by the transform of training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from castvision.data.datasets.batch import Batch
from castvision.data.datasets.samples import to_channels
from castvision.data.transforms.augmentation import SampleTransform
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from castvision.data.reading.pixels import Pixels
    from castvision.inference.predictor import Predictor


class FittedModel:
    """A predictor for `castvision.inference.tiled_inference` whose one tile is the whole image.

    Args:
        predictor: The model, trained on images brought to one size ("fit").
        dtype: Of the image's pixels.
        name: Of the image, for messages.
    """

    def __init__(self, predictor: Predictor, dtype: np.dtype[Any], name: str) -> None:
        self.predictor, self.dtype, self.name = predictor, dtype, name
        seen = predictor.parts.input
        self.transform = SampleTransform(max(seen.img_size), seen.mean, seen.std)

    def __call__(self, batch: Tensor, *, pixel_mask: Tensor | None = None) -> Tensor:
        """(B, channels, height, width) float32 in the image's range to (B, classes, height, width)."""
        outputs = []
        for number, planes in enumerate(batch):
            pixels = planes.permute(1, 2, 0).cpu().numpy().astype(self.dtype)
            holes = np.zeros(pixels.shape[:2], np.uint8)
            if pixel_mask is not None:
                holes[~pixel_mask[number].cpu().numpy()] = IGNORED
            logits, _, is_real = self._logits(pixels, holes, are_holes=True)
            outputs.append(_enlarged(_real(logits, is_real), planes.shape[-2:]).to(batch.device))
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
        logits, target, is_real = self._logits(pixels, mask, are_holes=False)
        labels = _real(logits.argmax(dim=0)[None], is_real)[0]
        return labels.cpu().numpy().astype(np.uint8), _real(target[None], is_real)[0].numpy().astype(np.uint8)

    def _logits(self, pixels: Pixels, mask: Pixels, *, are_holes: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(classes, size, size) logits, (size, size) mask, and where there is an image and no padding."""
        device, in_chans = self.predictor.device, self.predictor.parts.input.in_chans
        sample = self.transform.pair(to_channels(pixels, in_chans, self.name), mask)
        image, target, extras, _ = Batch(*sample)
        is_real = extras["pixel_mask"]
        shown = is_real & (target != IGNORED) if are_holes else is_real
        told = {} if shown.all() else {"pixel_mask": shown[None].to(device)}
        logits: Tensor = self.predictor.model(image[None].to(device), **told)
        return logits[0], target, is_real


def _real(planes: Tensor, is_real: Tensor) -> Tensor:
    """(C, size, size) without the padding, which lies below and to the right."""
    return planes[:, : int(is_real.any(dim=1).sum()), : int(is_real.any(dim=0).sum())]


def _enlarged(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return functional.interpolate(logits[None].float(), size=tuple(size), mode="bilinear", align_corners=False)[0]
