"""Pictures of an image, its true classes and the predicted ones, small enough for a contact sheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.ignored import IGNORED
from castvision.inference.sinks import middles
from castvision.inference.writers.preview import read_reduced
from castvision.visualization import pictures
from castvision.visualization.legend import shorten
from castvision.visualization.plots import Panel

if TYPE_CHECKING:
    from pathlib import Path

    from castvision.data import ImageReader
    from castvision.data.reading.labels import ClassReader

    Truth = ImageReader | ClassReader

Labels = np.ndarray[Any, np.dtype[Any]]
PANEL = 384
"""Longer side of a picture, in pixels."""


def panels_of(
    path: Path, reader: ImageReader, mask: Truth, labels: Labels, names: tuple[str, ...], miou: float
) -> list[Panel]:
    """A row of the contact sheet: the image, and the truth, the prediction and the errors laid over it.

    Args:
        path: The image.
        reader: The same, open.
        mask: The truth.
        labels: (height, width), the largest value of the dtype = no prediction.
        names: Of the classes.
        miou: Of the image.
    """
    picture = pictures.display_picture(read_reduced(reader, PANEL), max_side=PANEL)
    step = max(1, max(labels.shape) // PANEL)
    rows, cols = (middles(length, step) for length in labels.shape)
    truth = np.stack([mask.read(y, 0, 1, mask.width)[0, cols, 0] for y in rows.tolist()]).astype(np.int64)
    predicted = labels[np.ix_(rows, cols)].astype(np.int64)
    truth[truth == IGNORED] = -1
    predicted[predicted == np.iinfo(labels.dtype).max] = -1
    right = np.where((truth < 0) | (predicted < 0), -1, truth == predicted).astype(np.int64)
    background = pictures.background_class(names)
    shown = {
        "truth": (truth, background),
        f"prediction, mIoU {miou:.3f}": (predicted, background),
        "errors (tinted)": (right, 1),
    }
    size = (picture.shape[0], picture.shape[1])
    overlays = [
        Panel(title, pictures.overlay_labels(picture, pictures.resize_labels(values, size), untinted=kept))
        for title, (values, kept) in shown.items()
    ]
    return [Panel(shorten(path.name, 30), picture), *overlays]
