"""A loaded model as a predictor of tiles: range, channels and normalisation as in training, the same for every tile."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from castvision.data.reading.pixels import LUMA

if TYPE_CHECKING:
    from castvision.data import ImageReader
    from castvision.inference.predictor import Predictor

_BAND_BYTES = 1 << 25


def value_range(reader: ImageReader, level: int = 0) -> tuple[float, float]:
    """The values that become 0 and 1: as `castvision.data.reading.pixels.to_unit_range`, for an image read in bands.

    Args:
        reader: The image.
        level: Of its pyramid.

    Returns:
        (low, high), high > low.
    """
    dtype = np.dtype(reader.dtype)
    if dtype.kind in "bu":
        return 0.0, 1.0 if dtype.kind == "b" else float(np.iinfo(dtype).max)
    size = reader.levels[level]
    rows = max(1, _BAND_BYTES // (size.width * reader.channels * 8))
    lows, highs = [], []
    for y in range(0, size.height, rows):
        band = reader.read(y, 0, min(rows, size.height - y), size.width, level)
        values = band[np.isfinite(band) if reader.nodata is None else np.isfinite(band) & (band != reader.nodata)]
        if values.size:
            lows.append(float(values.min()))
            highs.append(float(values.max()))
    low, high = (min(lows), max(highs)) if lows else (0.0, 1.0)
    if dtype.kind == "f" and low >= 0 and high <= 1:
        return 0.0, 1.0
    return (low, high) if high > low else (low, low + 1.0)


def model_range(predictor: Predictor, reader: ImageReader, level: int = 0) -> tuple[float, float] | None:
    """See `value_range`; None where the model was trained on the units that this image has."""
    if predictor.parts.keeps_units and np.dtype(reader.dtype).kind in "if":
        return None
    return value_range(reader, level)


class TileModel:
    """Turns tiles in the image's own range into logits.

    Args:
        predictor: The model and its facts.
        channels: Of the image; grey and RGB are turned into one another.
        limits: The values that become 0 and 1; see `value_range`. None: the image keeps its units.

    Raises:
        ValueError: The image's channels do not fit the model.
    """

    def __init__(self, predictor: Predictor, channels: int, limits: tuple[float, float] | None) -> None:
        parts = predictor.parts
        if channels != parts.in_chans and {channels, parts.in_chans} != {1, 3}:
            raise ValueError(
                f"expected an image with {parts.in_chans} channels for this model, got {channels}; "
                f"select channels, or train with in_chans={channels}"
            )
        self.predictor, self.limits = predictor, limits
        self._mean, self._std = (self._channels(values) for values in (parts.mean, parts.std))

    def _channels(self, values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.predictor.device).view(1, -1, 1, 1)

    def __call__(self, batch: Tensor, *, context: Tensor | None = None, **where: Tensor) -> Tensor:
        """(B, channels, height, width) float32 to (B, classes, height, width); see `ContextSegmenter` for the rest."""
        if context is not None:
            where["context"] = self._normalised(context)
        logits: Tensor = self.predictor.model(self._normalised(batch), **where)
        return logits

    def _normalised(self, unit: Tensor) -> Tensor:
        if self.limits is not None:
            low, high = self.limits
            unit = ((unit - low) / (high - low)).clamp(0, 1)
        in_chans = self.predictor.parts.in_chans
        if unit.shape[1] != in_chans and in_chans == 1:
            unit = (unit * self._channels(LUMA)).sum(dim=1, keepdim=True)
        return (unit.expand(-1, in_chans, -1, -1) - self._mean) / self._std
