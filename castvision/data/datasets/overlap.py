"""Held-out ground that is training ground, too: tiles cut with an overlap, or one place on several days."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.datasets.regions import Block, Region
    from castvision.data.datasets.sources import ImageSources
    from castvision.data.reading import Georeference

logger = logging.getLogger(__name__)

_SHARE = 0.01
"""Of a held-out part: less than this is a common edge."""

Boxes = np.ndarray[Any, np.dtype[np.float64]]


class Ground(NamedTuple):
    """A part of an image, and where it lies.

    Attributes:
        name: Of the image.
        system: The coordinate system: what is equal for the same one.
        box: ((x from, to), (y from, to)).
    """

    name: str
    system: Any
    box: tuple[tuple[float, float], tuple[float, float]]


def ground_of(name: str, place: Georeference | None, part: Block) -> Ground | None:
    """Of a part of an image; None without a stated coordinate system, and for images that are turned against its axes.

    Args:
        name: Of the image.
        place: Where its pixels lie.
        part: In pixels.
    """
    if place is None or not place.has_crs:
        return None
    a, b, c, d, e, f = place.transform
    if b or d:
        return None
    x, y = (c + a * part.x, c + a * (part.x + part.width)), (f + e * part.y, f + e * (part.y + part.height))
    system = place.crs or (place.keys, place.doubles, place.ascii)
    return Ground(name, system, ((min(x), max(x)), (min(y), max(y))))


def ground_of_regions(sources: ImageSources, regions: Sequence[Region]) -> list[Ground | None]:
    """Of parts of images; None for those that do not say."""
    return [ground_of(str(sources.images[number]), sources.places[number], part) for number, part in regions]


def warn_of_overlap(splits: Mapping[str, Sequence[Ground | None]]) -> None:
    """Say how much of the held-out ground is training ground.

    Args:
        splits: Parts of images by split; "train" is compared with all others.
    """
    training: dict[Any, list[Any]] = {}
    for part in splits["train"]:
        if part is not None:
            training.setdefault(part.system, []).append(part.box)
    boxes = {system: np.array(some) for system, some in training.items()}
    held = [part for split, parts in splits.items() if split != "train" for part in parts if part is not None]
    shares = [_covered(part, boxes[part.system]) if part.system in boxes else 0.0 for part in held]
    overlapping = [(share, part.name) for share, part in zip(shares, held, strict=True) if share > _SHARE]
    if overlapping:
        share, name = max(overlapping)
        logger.warning(
            "%d of %d held-out images or squares lie on ground of training images, such as %.0f %% of %r: figures of "
            "held-out images will be too good; put images of one place into one split",
            len(overlapping), len(held), 100 * share, name,
        )  # fmt: skip


def _covered(part: Ground, others: Boxes) -> float:
    """Share of a part that others cover, at most 1; what several cover counts for each."""
    box = np.array(part.box)
    common = np.minimum(box[:, 1], others[..., 1]) - np.maximum(box[:, 0], others[..., 0])  # (n, 2)
    return min(1.0, float(common.clip(0).prod(axis=-1).sum() / np.diff(box).prod()))
