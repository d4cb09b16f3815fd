"""Training and held-out pixels: by slide, or by blocks of ground, never by tile.

Tiles of one place look alike. Spread over training and held-out sets, they make any model look good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence


class Block(NamedTuple):
    """A rectangle of an image, in pixels."""

    y: int
    x: int
    height: int
    width: int


Region = tuple[int, Block]
"""A part of an image: (number of the image among its sources, rectangle)."""


def split_by_source(
    sources: int | Sequence[Any],
    shares: Mapping[str, float],
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, list[int]]:
    """Whole images to splits.

    Args:
        sources: The images, or how many there are.
        shares: Of each split, such as ``{"train": 0.8, "val": 0.2}``; their sum counts as 1.
        seed: Another seed is another split.
        groups: One for each image, such as its patient: images of one group stay together.

    Returns:
        For each split the numbers of its images, ascending; at least one group each.

    Raises:
        ValueError: Fewer groups than splits, or shares that are none.
    """
    count = sources if isinstance(sources, int) else len(sources)
    groups = range(count) if groups is None else groups
    if len(groups) != count:
        raise ValueError(f"expected one group for each of {count} images, got {len(groups)}")
    names = list(dict.fromkeys(groups))
    owner = dict(zip(names, _assign(len(names), shares, seed, "images (or groups of them)"), strict=True))
    return {split: [index for index in range(count) if owner[groups[index]] == split] for split in shares}


def held_out(
    length: int, val_share: float, seed: int, groups: Sequence[Hashable] | None = None
) -> list[tuple[str, list[int]]]:
    """Which of ``length`` samples are for training and which held out, where the data do not say.

    Args:
        length: Number of samples.
        val_share: Share of them held out.
        seed: Of that choice.
        groups: One for each sample, such as its image: those of one group stay together.

    Raises:
        ValueError: A share outside (0, 1), or a single sample or group.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"expected 0 < val_share < 1, got {val_share=}")
    return list(split_by_source(length, {"train": 1 - val_share, "val": val_share}, seed, groups).items())


def split_by_block(
    height: int, width: int, block: int, shares: Mapping[str, float], seed: int = 0, margin: int = 0
) -> dict[str, list[Block]]:
    """One image's ground to splits, in square blocks.

    Windows that stay inside a block share no pixel with windows of another split. A margin keeps them farther apart.

    Args:
        height: Of the image.
        width: Of the image.
        block: Height and width of a block; those at the lower and right border may be smaller.
        shares: Of each split, such as ``{"train": 0.8, "val": 0.2}``; their sum counts as 1.
        seed: Another seed is another split.
        margin: Pixels between any two blocks that belong to none.

    Returns:
        For each split its blocks, at least one each.

    Raises:
        ValueError: Fewer blocks than splits, shares that are none, or a margin that leaves nothing of a block.
    """
    if block < 1 or min(height, width) < 1 or not 0 <= margin < block:
        raise ValueError(f"expected sizes >= 1 and 0 <= margin < block, got {height=}, {width=}, {block=}, {margin=}")
    rows, columns = _cut(height, block, margin), _cut(width, block, margin)
    blocks = [Block(y, x, tall, wide) for y, tall in rows for x, wide in columns]
    owners = _assign(len(blocks), shares, seed, f"blocks of {block} pixels")
    return {split: [area for area, owner in zip(blocks, owners, strict=True) if owner == split] for split in shares}


def _cut(length: int, block: int, margin: int) -> list[tuple[int, int]]:
    """(start, length) of the pieces of one axis; a small rest joins the piece before it."""
    starts = list(range(0, length, block))
    if len(starts) > 1 and length - starts[-1] <= max(margin, block // 4):
        starts.pop()
    ends = [*starts[1:], length]
    before, after = margin - margin // 2, margin // 2
    pieces = []
    for start, end in zip(starts, ends, strict=True):
        first = start + (before if start > 0 else 0)
        last = end - (after if end < length else 0)
        pieces.append((first, last - first))
    return pieces


def _assign(count: int, shares: Mapping[str, float], seed: int, things: str) -> list[str]:
    """A split for each of ``count`` things: rounded shares of a shuffled order, none empty."""
    if not shares or min(shares.values()) <= 0 or not np.isfinite(sum(shares.values())):
        raise ValueError(f"expected shares > 0, got shares={dict(shares)}")
    if count < len(shares):
        raise ValueError(
            f"expected at least one of the {things} for each of {', '.join(shares)}, got {count}; "
            "leave a split out, or split by (smaller) blocks"
        )
    wanted = np.array(list(shares.values()), float)
    wanted *= count / wanted.sum()
    amounts = np.maximum(np.floor(wanted).astype(int), 1)
    while amounts.sum() != count:
        step = 1 if amounts.sum() < count else -1
        lacking = np.where((step > 0) | (amounts > 1), step * (wanted - amounts), -np.inf)
        amounts[int(lacking.argmax())] += step
    owners = np.repeat(list(shares), amounts)
    np.random.default_rng(seed).shuffle(owners)
    return [str(owner) for owner in owners]
