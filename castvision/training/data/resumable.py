"""Training images in an order, and with random changes, that an interruption does not alter.

The order depends on the seed and the epoch, an image's augmentation on the seed, the epoch and its index: neither on
the loader process that reads it nor on what came before. So the state of a loader is how many batches of which epoch it
gave.
"""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from castvision.data.datasets.batch import Sample
from castvision.training.randomness import seed_all, seeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sized

    from torch.utils.data import Sampler


def world() -> tuple[int, int]:
    """(number of processes, rank of this one)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


class ShuffledSampler(DistributedSampler[int]):
    """A new order each epoch, the same one in every run with this seed; each process gets its share.

    Processes share no image: where their number does not divide that of the images, the last few are left out.

    Args:
        dataset: Anything with a length.
        seed: Of the orders.

    Attributes:
        start: How many of this process's indices the next iteration leaves out.
    """

    def __init__(self, dataset: Sized, seed: int = 0) -> None:
        super().__init__(dataset, *world(), shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]  # uses len only
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        """This process's indices of the current epoch."""
        start, self.start = self.start, 0
        return islice(super().__iter__(), start, None)


class FreshSampler(DistributedSampler[int]):
    """Indices never seen before: epoch e takes ``length`` of them from e * length on. For data sets without end.

    Args:
        length: Images an epoch.

    Attributes:
        start: How many of this process's indices the next iteration leaves out.
    """

    def __init__(self, length: int) -> None:
        super().__init__(range(length), *world(), shuffle=False, drop_last=True)  # type: ignore[arg-type]
        self.length = length
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        """This process's indices of the current epoch."""
        start, self.start = self.start, 0
        first = self.epoch * self.length + self.rank
        every = self.num_replicas
        return iter(range(first + start * every, first + self.num_samples * every, every))


class HeldOutSampler(DistributedSampler[int]):
    """Every image once, by one of the processes: torch's own sampler repeats some to make all shares of one length.

    Args:
        dataset: With at least as many images as there are processes.

    Raises:
        ValueError: Fewer images, so that a process would have none.
    """

    def __init__(self, dataset: Sized) -> None:
        super().__init__(dataset, *world(), shuffle=False)  # type: ignore[arg-type]  # uses len only
        if len(dataset) < self.num_replicas:
            raise ValueError(
                f"expected at least as many held-out images as processes, got {len(dataset)} for {self.num_replicas}; "
                "set a smaller trainer.devices"
            )
        self._share = range(self.rank, len(dataset), self.num_replicas)
        self.num_samples = len(self._share)

    def __iter__(self) -> Iterator[int]:
        """This process's indices."""
        return iter(self._share)


class SeededItems(Dataset[Sample]):
    """A data set whose random changes depend on a seed, the epoch and the index alone.

    Args:
        dataset: Draws from the generators of torch, numpy or Python, on the CPU.
        seed: Another one gives other changes.

    Attributes:
        epoch: () int64 in shared memory: loader processes that live on read the current one.
    """

    def __init__(self, dataset: Dataset[Sample], seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64)
        self.epoch.share_memory_()  # type: ignore[no-untyped-call]  # of torch

    def __len__(self) -> int:
        sized: Any = self.dataset  # map-style data sets have a length, which their type does not say
        return len(sized)

    def __getitem__(self, index: int) -> Sample:
        """An item of the current epoch."""
        purpose = int(self.epoch), index, self.seed
        if get_worker_info() is not None:  # a loader process draws for nothing else
            seed_all(*purpose, with_devices=False)
            return self.dataset[index]
        with seeded(*purpose, with_devices=False):
            return self.dataset[index]


class ResumableLoader(DataLoader[Sample]):
    """A loader that goes on where another one stopped; Lightning keeps its state in checkpoints.

    Args:
        dataset: Where ``epoch`` is set before each epoch.
        sampler: With ``epoch`` and ``start`` as `ShuffledSampler` has them. Of another one, batches that were given
            before are read again and left out, which is exact if its order depends on its epoch alone.
        **options: Of torch's loader.
    """

    def __init__(self, dataset: SeededItems, sampler: Sampler[int], **options: Any) -> None:
        super().__init__(dataset, sampler=sampler, **options)
        self._state = {"epoch": 0, "batches": 0}
        self._wanted: dict[str, int] | None = None

    def state_dict(self) -> dict[str, int]:
        """How many batches of which epoch were given; before the first batch after a resume, what it goes on from."""
        return dict(self._state if self._wanted is None else self._wanted)

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Leave out, when that epoch comes, what was given of it before."""
        self._wanted = dict(state_dict)

    def close(self) -> None:
        """End the loader processes."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None and self.num_workers > 0:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # torch has no other way than to wait for __del__

    # NOTE: a generator, which begins at the first batch: Lightning asks for the iterator before it sets the epoch, and
    # loader processes would start to read the images of another one.
    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """The batches of the sampler's epoch, or those that are left of it."""
        items: Any = self.dataset
        sampler: Any = self.sampler
        epoch = getattr(sampler, "epoch", None)
        epoch = int(torch.randint(1 << 62, ())) if epoch is None else int(epoch)
        wanted, self._wanted = self._wanted, None
        given = wanted["batches"] if wanted is not None and wanted["epoch"] == epoch else 0
        items.epoch.fill_(epoch)
        self._state = {"epoch": epoch, "batches": given}
        again = 0
        if hasattr(sampler, "start"):
            sampler.start = given * int(self.batch_size or 1)
        else:
            again = given
        for batch in islice(super().__iter__(), again, None):
            self._state["batches"] += 1
            yield batch


def outlive_signals(_: int) -> None:
    """Start of a loader process: signals are for the main one, which stops at the end of a step and needs its batches.

    A terminal and a scheduler send them to all processes of a job.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def _end_loader_processes() -> None:
    """At the end of the program: what outlives signals would be waited for without end."""
    left = [process for process in multiprocessing.active_children() if process.daemon]
    if left and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would tell of an error
    for process in left:
        process.kill()


atexit.register(_end_loader_processes)
