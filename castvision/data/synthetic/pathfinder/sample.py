"""One Pathfinder image with everything that is known about it: label, geometry and exact masks."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np
from numpy.typing import NDArray

from castvision.data.synthetic.pathfinder import masks
from castvision.data.synthetic.pathfinder.engine import Batch, make_batch
from castvision.data.synthetic.pathfinder.spec import PathfinderSpec

SPLITS: dict[str, int] = {"train": 0, "val": 1, "test": 2, "written": 3}
"""Numbers of the splits: the same index gives another image in each."""


@dataclass(frozen=True, eq=False)
class PathfinderSample:
    """An image of S x S pixels and its truth (for overlaps see :mod:`castvision.data.synthetic.pathfinder.masks`).

    Attributes:
        image: (S, S) uint8, 0..255.
        label: 1 if the two dots mark the ends of one path.
        semantic: (S, S) uint8: 0 other, 1 a long path that does not join the dots, 2 the path that does.
        instances: (S, S) uint8: 0 background, 1 and 2 the long paths, 3, 4, … the distractors.
        gap_free: (S, S) uint8: as ``semantic``, but each long path is one line without gaps.
        ordinal: (S, S) float32: place along its long path, 0 at the start to 1 at the end; -1 elsewhere.
        endpoints: (S, S) float32 in 0..1: a Gaussian on each dot.
        dots: (2, 2) int32: (y, x) of the two dots.
        margin: Paddle margin that was drawn for this image.
        paddles: (P, 7) int32: snake (0 and 1 are the long paths), place along it, tip (y, x), anchor (y, x), number of
            the stamp. A paddle starts at its tip; a path runs through its anchors. The first rows are the long paths'
            paddles in turn.
    """

    image: NDArray[np.uint8]
    label: int
    semantic: NDArray[np.uint8]
    instances: NDArray[np.uint8]
    gap_free: NDArray[np.uint8]
    ordinal: NDArray[np.float32]
    endpoints: NDArray[np.float32]
    dots: NDArray[np.int32]
    margin: int
    paddles: NDArray[np.int32]


def make_pathfinder(
    spec: PathfinderSpec, seed: int, split: str, index: int, *, label: int | None = None
) -> PathfinderSample:
    """The sample of a (seed, split, index): always the same, whatever else is made beside it.

    Args:
        spec: What to draw, for example ``PathfinderSpec.lra(32)``.
        seed: Of the whole set, at least 0.
        split: "train", "val", "test" or "written" (the sets on disk).
        index: Number of the sample, at least 0.
        label: Force 0 or 1; None draws it. Paths and distractors stay the same.

    Raises:
        ValueError: An unknown split or label, a number below 0, or paths too long for the image.
        TypeError: A number that is not whole.
    """
    check_key(seed, split)
    if label not in (None, 0, 1):
        raise ValueError(f"expected label to be 0, 1 or None, got {label=}")
    batch = make_batch(spec, seed, SPLITS[split], np.array([_check_number("index", index)], np.int64), label)
    return make_samples(spec, batch)[0]


def check_key(seed: int, split: str) -> None:
    """Raise unless ``seed`` and ``split`` name a set."""
    if split not in SPLITS:
        raise ValueError(f"expected split to be one of {', '.join(SPLITS)}, got {split=}")
    _check_number("seed", seed)


def _check_number(name: str, value: SupportsIndex) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"expected {name} to be a whole number, got {name}={value!r}") from None
    if not 0 <= number < 2**63:
        raise ValueError(f"expected 0 <= {name} < 2**63, got {name}={number}")
    return number


def make_samples(spec: PathfinderSpec, batch: Batch) -> list[PathfinderSample]:
    """A batch with all masks, as single samples."""
    semantic, instances = masks.make_semantic_masks(spec, batch), masks.make_instance_masks(spec, batch)
    gap_free, ordinal = masks.make_gap_free_masks(spec, batch), masks.make_ordinal_masks(spec, batch)
    endpoints = masks.make_endpoint_maps(spec, batch)
    return [
        PathfinderSample(
            image=batch.images[i].copy(),
            label=int(batch.labels[i]),
            semantic=semantic[i].copy(),
            instances=instances[i].copy(),
            gap_free=gap_free[i].copy(),
            ordinal=ordinal[i].copy(),
            endpoints=endpoints[i].copy(),
            dots=batch.dots[i].copy(),
            margin=spec.paddle_margins[batch.margins[i]],
            paddles=batch.paddles[i, : batch.counts[i]].copy(),
        )
        for i in range(len(batch.labels))
    ]
