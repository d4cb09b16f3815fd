"""Random numbers as a function of what they are for, so that no state of a generator has to survive an interruption."""

from __future__ import annotations

import random
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST = 1 << 64


def seed_all(*numbers: int, with_devices: bool = True) -> None:
    """Seed the generators of torch, numpy and Python.

    Args:
        *numbers: What the random numbers are for, such as a seed and the number of a step; any whole numbers.
        with_devices: Those of accelerators, too.
    """
    words = np.random.SeedSequence([number % _LARGEST for number in numbers]).generate_state(4)
    seed = int(words[0]) << 32 | int(words[1])
    if with_devices and torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)
    np.random.seed(words)
    random.seed(seed)


@contextmanager
def seeded(*numbers: int, with_devices: bool = True) -> Iterator[None]:
    """Inside, random numbers are a function of ``numbers``, see `seed_all`; outside, nothing has changed."""
    with isolate_rng(include_cuda=with_devices):
        seed_all(*numbers, with_devices=with_devices)
        yield
