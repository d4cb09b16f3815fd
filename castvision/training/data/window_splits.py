"""Which images, or which squares of them, training windows come from and which are held out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import numpy as np

from castvision.data.datasets.labelled_split import split_labelled
from castvision.data.datasets.leaks import kept_together, same_images
from castvision.data.datasets.regions import Region, split_by_block, split_by_source
from castvision.data.datasets.sources import ClassIndex, whole_images
from castvision.data.datasets.vector_labels import VectorMask
from castvision.ignored import IGNORED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.data.datasets.sources import ImageSources

logger = logging.getLogger(__name__)

LARGEST_BLOCK = 2048


def split_regions(
    sources: ImageSources,
    owners: Sequence[str] | None,
    shares: Mapping[str, float],
    seed: int,
    *,
    split: Literal["source", "block"] | None,
    block: int | None,
    margin: int,
    size: int,
) -> dict[str, list[Region]]:
    """Parts of the images for each split.

    Args:
        sources: Images and masks.
        owners: The split of each image; None = by shares.
        shares: Of the splits.
        seed: Another seed is another split.
        split: By image ("source") or by square ("block"); None = by image, where there are enough with labels.
        block: Height and width of a square; None = the largest that gives every split its share of labels.
        margin: Pixels left out between squares.
        size: Of a window.

    Raises:
        ValueError: Too few images or squares with labels, or one image twice.
    """
    whole = whole_images(sources)
    if owners is not None:
        return {name: [part for part, owner in zip(whole, owners, strict=True) if owner == name] for name in
                dict.fromkeys(owners)}  # fmt: skip
    groups = same_images(sources.images)
    apart = kept_together(sources.images) if split != "block" else groups
    is_drawn = isinstance(sources.masks[0], VectorMask)
    present = _present(sources, whole) if is_drawn and split != "block" else np.ones((len(whole), 1), bool)
    if split is None:
        labelled = {group for group, holds in zip(apart, present, strict=True) if holds.any()}
        split = "source" if len(labelled) >= len(shares) else "block"
    if split == "source":
        chosen = split_labelled(present, shares, seed, apart) if is_drawn else split_by_source(
            len(sources), shares, seed, apart
        )  # fmt: skip
        return {name: [whole[index] for index in indices] for name, indices in chosen.items()}
    for index, first in enumerate(groups):
        if first != index:
            raise ValueError(
                f"expected an image once, got the same one as {str(sources.images[first])!r} and "
                f"{str(sources.images[index])!r}, whose blocks would fall into different splits; remove one of them"
            )
    pieces, present = _squares(sources, shares, block, margin, size)
    chosen = split_labelled(present, shares, seed)
    return {name: [pieces[index] for index in indices] for name, indices in chosen.items()}


def _squares(
    sources: ImageSources, shares: Mapping[str, float], block: int | None, margin: int, size: int
) -> tuple[list[Region], np.ndarray[tuple[int, int], np.dtype[np.bool_]]]:
    """Squares and the classes in each: of the size that is given, or of the largest at which shares can be met."""
    wanted = min(int(np.ceil(sum(shares.values()) / min(shares.values()))), 20)
    side = block or LARGEST_BLOCK
    while True:
        pieces = [
            (number, area)
            for number, (height, width) in enumerate(sources.sizes)
            for area in split_by_block(height, width, side, {"all": 1.0}, margin=margin)["all"]
        ]
        present = _present(sources, pieces)
        count = int(present.any(axis=1).sum())
        is_enough = count >= (len(shares) if side <= size else wanted)
        if block is not None or is_enough or side // 2 <= max(margin, size // 4):
            break
        side //= 2
    logger.info("images are split by squares of %d pixels, %d of %d with labels", side, count, len(pieces))
    return pieces, present


def _present(sources: ImageSources, regions: Sequence[Region]) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    """(regions, 255) which classes each holds; of drawn labels without that of unlabelled ground."""
    present = np.array([ClassIndex(sources, [part]).counts[:IGNORED] > 0 for part in regions])
    mask = sources.masks[0]
    if isinstance(mask, VectorMask) and mask.unlabelled != IGNORED:
        present[:, mask.unlabelled] = False
    return present
