"""Splits of few labels: every split gets some, and training every class that there is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence


def split_labelled(
    present: np.ndarray[Any, np.dtype[np.bool_]],
    shares: Mapping[str, float],
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> dict[str, list[int]]:
    """Things such as blocks of ground to splits, by the classes they hold.

    The rarest class is dealt out first, each thing to the split that lacks it most (iterative stratification).

    Args:
        present: (things, classes): which classes each thing holds; a thing may hold none.
        shares: Of each split, > 0; the first is for training.
        seed: Another seed is another split.
        groups: One for each thing: things of one group stay together.

    Returns:
        For each split the numbers of its things, ascending, at least one labelled group among them.

    Raises:
        ValueError: Fewer groups with labels than splits, or shares that are none.
    """
    if not shares or min(shares.values()) <= 0 or not np.isfinite(sum(shares.values())):
        raise ValueError(f"expected shares > 0, got shares={dict(shares)}")
    members: dict[Hashable, list[int]] = {}
    for thing in range(len(present)):
        members.setdefault(thing if groups is None else groups[thing], []).append(thing)
    things = list(members.values())
    holds = np.array([present[some].any(axis=0) for some in things])
    labelled = np.flatnonzero(holds.any(axis=1))
    if len(labelled) < len(shares):
        raise ValueError(
            f"expected at least one of {len(things)} parts with labels for each of {', '.join(shares)}, got "
            f"{len(labelled)}; leave a split out, or split by (smaller) blocks, or label more"
        )
    rng = np.random.default_rng(seed)
    weight = np.array(list(shares.values()), float) / sum(shares.values())
    owner = rng.choice(len(weight), len(things), p=weight)  # of those without labels
    owner[labelled] = -1
    _deal(owner, holds, rng.permutation(labelled), weight)
    _fill(owner, holds, labelled, len(weight))
    return {
        split: sorted(thing for some, mine in zip(things, owner, strict=True) if mine == number for thing in some)
        for number, split in enumerate(shares)
    }


def _deal(owner: Any, holds: Any, order: Any, weight: Any) -> None:
    lacking = weight[:, None] * holds[order].sum(axis=0)  # (splits, classes)
    room = weight * len(order)
    while (owner[order] < 0).any():
        left = order[owner[order] < 0]
        counts = holds[left].sum(axis=0)
        rarest = int(np.where(counts > 0, counts, len(order) + 1).argmin())
        for thing in left[holds[left, rarest]]:
            split = max(range(len(weight)), key=lambda number: (lacking[number, rarest], room[number]))
            owner[thing] = split
            lacking[split, holds[thing]] -= 1
            room[split] -= 1


def _fill(owner: Any, holds: Any, labelled: Any, count: int) -> None:
    """Give a split without labels a part of the split that has most, if possible one whose classes remain there."""
    for split in range(count):
        if (owner[labelled] == split).any():
            continue
        donor = int(np.bincount(owner[labelled], minlength=count).argmax())
        mine = labelled[owner[labelled] == donor]
        remaining = [(holds[mine[mine != thing]].any(axis=0) & holds[thing]).sum() for thing in mine]
        short = [holds[thing].sum() - rest for thing, rest in zip(mine, remaining, strict=True)]
        owner[mine[int(np.argmin(short))]] = split
