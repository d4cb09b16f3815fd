"""What the tests of single objects share: maps on disk, and maps of objects that cross bands and tiles."""

from __future__ import annotations

import numpy as np

from castvision.inference.instances import bands
from castvision.inference.sinks import FileSink


def stored(path, array):
    """A map in a file."""
    sink = FileSink(path)
    sink.allocate(array.shape, array.dtype, 0)
    sink.write(0, 0, array)
    return sink


def whole(sink):
    return sink.read(0, 0, *sink.shape[:2])


def in_bands_of(monkeypatch, rows, width):
    """Have maps of (height, width) read in bands of so many rows."""
    monkeypatch.setattr(bands, "BAND_VALUES", rows * width)


def blobs(size=(150, 170), seed=0, classes=3, nodata=255):
    """Classes of ragged areas, large and small, that touch each other and all borders, with a hole without data."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (size[0] // 6 + 1, size[1] // 6 + 1))
    labels = np.kron(coarse, np.ones((6, 6), int))[: size[0], : size[1]]
    moved = rng.integers(-3, 4, (2, *size))
    y, x = np.mgrid[: size[0], : size[1]]
    labels = labels[np.clip(y + moved[0], 0, size[0] - 1), np.clip(x + moved[1], 0, size[1] - 1)].astype(np.uint8)
    labels[40:70, 50:90] = nodata
    return labels


def discs(size=(260, 300), seed=1, count=70):
    """0 and 1: discs of radius 6 to 16, many of which overlap."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, np.uint8)
    for row, column, radius in zip(
        rng.integers(0, size[0], count), rng.integers(0, size[1], count), rng.integers(6, 17, count), strict=True
    ):
        labels[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = 1
    return labels
