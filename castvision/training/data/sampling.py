"""Which image comes when: a function of the epoch alone, so that a resumed run sees what an uninterrupted one sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist
from torch.utils.data import DistributedSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized


def _place() -> tuple[int, int]:
    """(number of processes, this one's number)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


class ShuffledSampler(DistributedSampler[int]):
    """A new order each epoch, the same one in every run with this seed; each process gets its share.

    Args:
        dataset: Anything with a length.
        seed: Of the orders.
    """

    def __init__(self, dataset: Sized, seed: int = 0) -> None:
        replicas, rank = _place()
        super().__init__(dataset, replicas, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]  # uses len only


class FreshSampler(DistributedSampler[int]):
    """Indices never seen before: epoch e takes ``length`` of them from e * length on. For data sets without end.

    Args:
        length: Images an epoch.
    """

    def __init__(self, length: int) -> None:
        replicas, rank = _place()
        super().__init__(range(length), replicas, rank, shuffle=False, drop_last=True)  # type: ignore[arg-type]
        self.length = length

    def __iter__(self) -> Iterator[int]:
        """This process's indices of the current epoch."""
        start = self.epoch * self.length + self.rank
        return iter(range(start, start + self.num_samples * self.num_replicas, self.num_replicas))
