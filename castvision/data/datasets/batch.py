"""Samples and batches: images and targets, what a model is told beside its images, images of different sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from castvision.ignored import IGNORED

More = dict[str, Tensor]
Sample = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, More] | tuple[Tensor, Tensor, More, More]
"""An item: (image, target), with or without extras and further truth; all items of a data set have the same parts."""


ENDLESS = 1 << 40
"""The length of data made when asked for, which no training reaches: it never sees an image twice."""


class Batch(NamedTuple):
    """The parts of a batch by name: ``Batch(*batch)`` of what a loader gives, two parts or more.

    Attributes:
        image: (B, C, height, width) float32.
        target: (B, height, width) or (B,) int64, or (B, classes) float32.
        extras: Keyword arguments of the model, each (B, ...), such as ``pixel_mask`` (B, height, width) bool, True
            where a pixel is real and no padding.
        truth: What metrics need beside the target and no model is shown, each (B, ...), such as ``distance``
            (B, height, width) float32: how long the way from the dot is, in image sides.
    """

    image: Tensor
    target: Tensor
    extras: Mapping[str, Tensor] = {}
    truth: Mapping[str, Tensor] = {}


_TARGETS = ("mask", "label", "target")


def as_batch(batch: Batch | Sequence[Any] | Mapping[str, Any] | Tensor, *, needs_target: bool = True) -> Batch:
    """The parts of a batch, whoever's loader it comes from.

    Args:
        batch: ``(image, target)`` with or without extras and truth, or a mapping with "image", with "mask", "label" or
            "target" and, if wanted, with "extras" and "truth"; its other keys are nobody's. Masks are (B, height,
            width) or (B, 1, height, width), of any whole numbers.
        needs_target: If False, images alone will do.

    Returns:
        See `Batch`; the target is int64 where it was of whole numbers, and empty where there is none.

    Raises:
        ValueError: No image, no target, a mask of several channels, an image or a target that is no tensor, or a third
            part that is no mapping.
    """
    if isinstance(batch, Tensor):
        batch = (batch,)
    nothing: Any = None
    if isinstance(batch, Mapping):
        found = [name for name in _TARGETS if name in batch]
        if "image" not in batch or len(found) > 1 or (needs_target and not found):
            raise ValueError(
                f"expected a batch with the keys 'image' and one of {_TARGETS}, got {sorted(map(str, batch))}; "
                "name its parts so, or give (image, target)"
            )
        target = batch[found[0]] if found else nothing
        parts = Batch(batch["image"], target, batch.get("extras", {}), batch.get("truth", {}))
    elif len(batch) == 1 and not needs_target:
        parts = Batch(batch[0], nothing)
    elif 2 <= len(batch) <= len(Batch._fields):
        parts = Batch(*batch)
    else:
        raise ValueError(f"expected a batch (image, target), got {len(batch)} part(s); give images and targets")
    if not (isinstance(parts.extras, Mapping) and isinstance(parts.truth, Mapping)):
        raise ValueError(
            f"expected mappings behind (image, target), for the model and for metrics, got {len(batch)} parts, of "
            f"which {type(parts.extras).__name__} is none; leave out names and indices, or give a mapping with "
            "'image' and 'mask', whose other keys are nobody's"
        )
    if not isinstance(parts.image, Tensor):
        raise ValueError(
            f"expected a tensor of images (B, channels, height, width), got {type(parts.image).__name__}; stack them"
            ", and give torch.from_numpy of arrays"
        )
    return parts._replace(target=_target(parts.target, parts.image, needs_target))


def _target(target: Any, image: Tensor, needs_target: bool) -> Tensor:
    if not isinstance(target, Tensor):
        if needs_target:
            raise ValueError(
                f"expected a tensor of targets behind the images, got {type(target).__name__}; give numbers of classes"
            )
        return image.new_empty(0)
    if target.ndim == 4:
        if target.shape[1] != 1:
            raise ValueError(
                f"expected masks (B, height, width) or (B, 1, height, width) of class numbers, got "
                f"{tuple(target.shape)}; take the argmax over the channels of one-hot masks"
            )
        target = target[:, 0]
    found: Tensor = target if target.is_floating_point() else target.long()
    return found


def pad_collate(samples: Sequence[Sample], multiple: int = 1) -> Batch:
    """Pad below and to the right, to the largest height and width of the batch, rounded up to a multiple.

    Args:
        samples: (image (C, h, w), mask (h, w)) of any sizes, each with or without the extra ``pixel_mask`` (h, w), and
            all of them or none with further truth (h, w).
        multiple: Of both sides of the result, such as the patch size.

    Returns:
        Images, 0 in the padding (the mean, once images are normalised), targets, 255 there, and as an extra
        ``pixel_mask`` (B, height, width) bool, True where there is an image and a sample's own mask says
        nothing else; further truth is 0 in the padding. Nothing of any image is lost.

    Raises:
        ValueError: No samples, different numbers of channels, a mask of another size, or ``multiple`` < 1.
    """
    if not samples or multiple < 1:
        raise ValueError(f"expected samples and multiple >= 1, got {len(samples)} samples, {multiple=}")
    parts = [Batch(*sample) for sample in samples]
    channels = {image.shape[0] for image, *_ in parts}
    if len(channels) != 1:
        raise ValueError(f"expected images of one number of channels, got {sorted(channels)}")
    height, width = (-(-max(image.shape[axis] for image, *_ in parts) // multiple) * multiple for axis in (-2, -1))
    images = samples[0][0].new_zeros(len(samples), channels.pop(), height, width)
    targets = torch.full((len(samples), height, width), IGNORED, dtype=torch.int64)
    is_real = torch.zeros(len(samples), height, width, dtype=torch.bool)
    truth = {name: value.new_zeros(len(samples), height, width) for name, value in parts[0].truth.items()}
    for place, (image, mask, extras, more) in enumerate(parts):
        rows, cols = image.shape[-2:]
        if mask.shape != (rows, cols):
            raise ValueError(f"expected a mask of the image's size {(rows, cols)}, got {tuple(mask.shape)}")
        images[place, :, :rows, :cols] = image
        targets[place, :rows, :cols] = mask
        is_real[place, :rows, :cols] = extras.get("pixel_mask", torch.tensor(True))
        for name, value in more.items():
            truth[name][place, :rows, :cols] = value
    return Batch(images, targets, {"pixel_mask": is_real}, truth)


def with_masks(samples: Sequence[Sample]) -> list[Sample]:
    """Samples of one batch that agree in having a ``pixel_mask``: where only some have gaps, the others' is True."""
    parts = [Batch(*sample) for sample in samples]
    if len({"pixel_mask" in extras for _, _, extras, _ in parts}) < 2:
        return list(samples)
    full = torch.ones(parts[0].image.shape[-2:], dtype=torch.bool)
    return [
        (image, target, {"pixel_mask": full, **extras}, dict(truth)) if truth else
        (image, target, {"pixel_mask": full, **extras})
        for image, target, extras, truth in parts
    ]  # fmt: skip


def drop_full_mask(batch: Batch) -> Batch:
    """A batch without padding comes without ``pixel_mask``, and the model has no work with it."""
    extras = dict(batch.extras)
    if "pixel_mask" in extras and extras["pixel_mask"].all():
        del extras["pixel_mask"]
    return batch._replace(extras=extras)
