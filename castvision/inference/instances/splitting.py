"""Touching objects cut apart where they are narrow: each component by itself, so that tiles make no difference."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.inference.instances.bands import bands_of
from castvision.inference.instances.table import measure

if TYPE_CHECKING:
    from castvision.inference.sinks import FileSink

Array = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
MOST_PIXELS = 1 << 24
"""Of the box around a component that is split: one of so many took 1.6 GiB and 43 seconds."""


def check_installed(what: str) -> None:
    """Refuse what needs scikit-image (and scipy, which comes with it) where it is not installed.

    Raises:
        ImportError: It names the extra.
    """
    if find_spec("skimage") is None:
        raise ImportError(f"{what} needs scikit-image: pip install 'castvision[instances]'")


def split_mask(mask: Mask, depth: float) -> Array:
    """Cut an object where it is narrow.

    The distance of each pixel to the background is a landscape; its tops that rise more than ``depth`` above the pass
    to a higher one are objects (h-maxima), and each pixel belongs to the top that it leads up to (a watershed of the
    negative distance). What is beyond the mask counts as background.

    Args:
        mask: (height, width) bool.
        depth: How much narrower, on each side and in pixels, the neck must be than the smaller of two parts.

    Returns:
        (height, width) int32: 0 outside, parts 1, 2, 3, …
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.measure import label
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    padded = np.pad(mask, 1)
    distance = distance_transform_edt(padded)
    tops = local_maxima(reconstruction(distance - depth, distance))
    parts: Array = watershed(-distance, label(tops & padded), mask=padded)
    return parts[1:-1, 1:-1].astype(np.int32)


def split_components(ids: FileSink, stands_for: Array, classes: Array, depth: float) -> tuple[Array, Array]:
    """Cut all components apart, in place.

    Each is read by the box around it and cut by its own shape, whatever lies beside it.

    Args:
        ids: (height, width) uint32, see `write_components`; new parts get new numbers.
        stands_for: For each number the one that stands for its component.
        classes: Of each number.
        depth: See `split_mask`.

    Returns:
        Both with the new numbers.

    Raises:
        ValueError: A component whose box has more than `MOST_PIXELS` pixels.
    """
    for y, band in bands_of(ids):
        ids.write(y, 0, stands_for[band].astype(np.uint32))
    boxes = measure(ids, len(classes) - 1).boxes
    sides = boxes[:, 2:] - boxes[:, :2]
    largest = int(sides.prod(axis=1).argmax())
    if sides[largest].prod() > MOST_PIXELS:
        height, width = sides[largest].tolist()
        raise ValueError(
            f"an object of {height:,} × {width:,} pixels is too large to be split (at most {MOST_PIXELS:,} pixels in "
            "its box); use --instances components, or name the classes of small objects with --things"
        )
    added: list[int] = []
    total = len(classes)
    for number in np.flatnonzero(sides.min(axis=1) > 2).tolist():  # narrower ones have no pixel two from the edge
        top, left, bottom, right = boxes[number].tolist()
        crop = ids.read(top, left, bottom - top, right - left)
        parts = split_mask(crop == number, depth)
        more = int(parts.max()) - 1
        if more > 0:
            crop = np.where(parts > 1, parts - 2 + total, crop).astype(np.uint32)
            ids.write(top, left, crop)
            total += more
            added += [int(classes[number])] * more
    return np.arange(total), np.concatenate([classes, np.array(added, np.int64)])
