"""What a run over an image's tiles leaves in a file, taken apart: classes, probabilities, centres and offsets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from castvision.inference.instances.bands import bands_of
from castvision.inference.instances.grouping import FIELDS
from castvision.inference.sinks import FileSink

if TYPE_CHECKING:
    from castvision.inference.tiled import TiledResult

Kind = Literal["labels", "probabilities", "image"]


@dataclass(frozen=True)
class Maps:
    """Maps of one image.

    Attributes:
        labels: (height, width) classes, the dtype's largest where there is no data.
        probabilities: (height, width, classes) float32, NaN where there is no data; None if they were not kept.
        fields: (height, width, 3) float32, see `castvision.inference.instances.grouping.FIELDS`; None likewise.
    """

    labels: FileSink
    probabilities: FileSink | None = None
    fields: FileSink | None = None

    def discard(self) -> None:
        """Delete the files."""
        for sink in (self.labels, self.probabilities, self.fields):
            if sink is not None:
                sink.discard()


def maps_of(sink: FileSink, kind: Kind, classes: int) -> Maps:
    """Take apart what stands in a file.

    Args:
        sink: What `castvision.inference.tiled_inference` wrote.
        kind: Its ``output``; "image": probabilities, then fields.
        classes: How many there are.

    Returns:
        The maps, in that file or in files beside it.
    """
    if kind == "labels":
        return Maps(sink)
    if kind == "probabilities":
        return Maps(sink.argmax(), sink)
    probabilities, fields = (
        FileSink(sink.path.with_name(f"{sink.path.name}.{name}")) for name in ("classes", "fields")
    )
    for part, channels in ((probabilities, classes), (fields, FIELDS)):
        part.allocate((*sink.shape[:2], channels), sink.dtype, float("nan"))
    for y, band in bands_of(sink):
        probabilities.write(y, 0, band[..., :classes])
        fields.write(y, 0, band[..., classes:])
    return Maps(probabilities.argmax(), probabilities, fields)


def with_classes(result: TiledResult, maps: Maps, classes: int) -> TiledResult:
    """The result of a run whose output was no classes, with what is counted of them.

    How much tiles disagree is not told: it was compared among probabilities and offsets together.
    """
    pixels, sums = np.zeros(classes, np.int64), np.zeros(classes)
    if maps.probabilities is not None:
        for y, values in bands_of(maps.probabilities):
            labels = maps.labels.read(y, 0, len(values), values.shape[1])
            known = labels < classes
            pixels += np.bincount(labels[known], minlength=classes)
            sums += np.bincount(labels[known], values[known].max(axis=1).astype(np.float64), minlength=classes)
    means: Any = np.where(pixels > 0, sums / np.maximum(pixels, 1), np.nan)
    return dataclasses.replace(
        result, seam=None, class_pixels=tuple(pixels.tolist()), class_probability=tuple(means.tolist())
    )
