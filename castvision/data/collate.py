"""Images of different sizes in one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from castvision.data.labels import IGNORED

if TYPE_CHECKING:
    from collections.abc import Sequence


class PaddedBatch(NamedTuple):
    """Images padded below and to the right.

    Attributes:
        image: (B, C, height, width), 0 in the padding: the mean, once images are normalised.
        target: (B, height, width) int64, 255 in the padding.
        pixel_mask: (B, height, width) bool, True where there is an image.
    """

    image: Tensor
    target: Tensor
    pixel_mask: Tensor


def pad_collate(samples: Sequence[tuple[Tensor, Tensor]], multiple: int = 1) -> PaddedBatch:
    """Pad to the largest height and width of the batch, rounded up to a multiple.

    Args:
        samples: (image (C, h, w), mask (h, w)) of any sizes.
        multiple: Of both sides of the result, such as the patch size.

    Returns:
        The batch; nothing of any image is lost.

    Raises:
        ValueError: No samples, different numbers of channels, a mask of another size, or ``multiple`` < 1.
    """
    if not samples or multiple < 1:
        raise ValueError(f"expected samples and multiple >= 1, got {len(samples)} samples, {multiple=}")
    channels = {image.shape[0] for image, _ in samples}
    if len(channels) != 1:
        raise ValueError(f"expected images of one number of channels, got {sorted(channels)}")
    height, width = (-(-max(image.shape[axis] for image, _ in samples) // multiple) * multiple for axis in (-2, -1))
    batch = PaddedBatch(
        samples[0][0].new_zeros(len(samples), channels.pop(), height, width),
        torch.full((len(samples), height, width), IGNORED, dtype=torch.int64),
        torch.zeros(len(samples), height, width, dtype=torch.bool),
    )
    for place, (image, mask) in enumerate(samples):
        rows, cols = image.shape[-2:]
        if mask.shape != (rows, cols):
            raise ValueError(f"expected a mask of the image's size {(rows, cols)}, got {tuple(mask.shape)}")
        batch.image[place, :, :rows, :cols] = image
        batch.target[place, :rows, :cols] = mask
        batch.pixel_mask[place, :rows, :cols] = True
    return batch
