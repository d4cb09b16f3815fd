"""How often each class occurs in a data set's masks, from a sample of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from castvision.losses import IGNORED

if TYPE_CHECKING:
    from castvision.training.data.data_module import Pairs

logger = logging.getLogger(__name__)

SAMPLE = 256
"""Images that are looked at."""


def count_classes(dataset: Pairs, num_classes: int, sample: int = SAMPLE) -> Tensor:
    """Count the pixels of each class in images spread evenly over a data set; the random state stays as it is.

    Args:
        dataset: Gives (image, mask), mask (height, width) int64 with 255 = ignored.
        num_classes: Classes.
        sample: At most so many images.

    Returns:
        (num_classes,) int64.

    Raises:
        ValueError: A label that is no class.
    """
    sized: Any = dataset  # map-style data sets have a length, which their type does not say
    length = len(sized)
    counts = torch.zeros(num_classes, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        for number in range(min(sample, length)):
            place = number * length // min(sample, length)
            mask = torch.as_tensor(dataset[place][1])
            found = torch.bincount(mask[mask != IGNORED], minlength=num_classes)
            if len(found) > num_classes:
                raise ValueError(
                    f"expected labels 0..{num_classes - 1} or {IGNORED}, got {len(found) - 1} in training image {place}"
                )
            counts += found
    logger.info("pixels of each class in %d training images: %s", min(sample, length), counts.tolist())
    return counts
