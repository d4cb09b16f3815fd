"""The task of objects: a class for each pixel, centres of objects, and the way from a pixel to its object's centre."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from castvision.ignored import IGNORED
from castvision.models.centres import CentreSegmenter
from castvision.training.tasks.segmentation import SegmentationTask

if TYPE_CHECKING:
    from collections.abc import Mapping


class InstanceTask(SegmentationTask):
    """Segmentation with three maps more, as Panoptic-DeepLab learns them (arXiv 1911.10194, section 3.2).

    The loss is that of the classes, plus ``heat_weight`` times the mean squared error of the heat map, plus
    ``offset_weight`` times the mean over pixels of objects of |dy| + |dx| of the offsets' error. The weights and the
    width of a centre are the paper's. The checkpoint is chosen by the classes' mean IoU.

    Args:
        model_name: See `SegmentationTask`.
        num_classes: See there.
        centre_sigma: Standard deviation of the Gaussian around a centre in the heat map, in pixels; half a small
            object's radius or more is blurred into its neighbours'.
        heat_weight: See above.
        offset_weight: See above.
        **shared: Of `SegmentationTask`, but no ``context_size``.

    Raises:
        ValueError: See `SegmentationTask`; or a number that is not positive.
    """

    gives_centres = True

    def __init__(
        self,
        model_name: str,
        num_classes: int | None = None,
        *,
        centre_sigma: float = 8.0,
        heat_weight: float = 200.0,
        offset_weight: float = 0.01,
        **shared: Any,
    ) -> None:
        if min(centre_sigma, heat_weight, offset_weight) <= 0:
            raise ValueError(
                f"expected centre_sigma, heat_weight and offset_weight > 0, got {centre_sigma=}, {heat_weight=}, "
                f"{offset_weight=}"
            )
        super().__init__(model_name, num_classes, **shared)
        self.centre_sigma, self.heat_weight, self.offset_weight = centre_sigma, heat_weight, offset_weight

    def forward(self, image: Tensor, **extras: Tensor) -> Tensor:
        """(B, num_classes + 3, height, width): logits, heat, dy and dx."""
        model = self.model
        if not isinstance(model, CentreSegmenter):
            raise TypeError(f"expected a model that gives centres, got {type(model).__name__}")
        return model.all_maps(image, **extras)

    def decide(self, logits: Tensor) -> Tensor:
        """The most probable class, (B, height, width) int64."""
        return logits[:, : self.num_classes].argmax(dim=1)

    def batch_loss(self, logits: Tensor, target: Tensor, truth: Mapping[str, Tensor]) -> Tensor:
        """See the class.

        Raises:
            ValueError: Data without objects.
        """
        if "objects" not in truth:
            raise ValueError(
                "expected data with masks of objects for InstanceTask; use InstanceDataModule, or give batches "
                "{'image', 'mask', 'truth': {'objects': numbers (B, height, width)}}"
            )
        classes, maps = logits[:, : self.num_classes], logits[:, self.num_classes :]
        objects = truth["objects"]
        heat, offsets = centre_targets(objects, self.centre_sigma)
        known = target != IGNORED
        of_heat = centre_loss(maps[:, 0].float(), heat, known)
        of_offsets = offset_loss(maps[:, 1:].float(), offsets, (objects > 0) & known)
        return self.loss(classes, target) + self.heat_weight * of_heat + self.offset_weight * of_offsets


def centre_targets(objects: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """What the three maps should be.

    Args:
        objects: (B, height, width) int64 numbers, 0 = no object.
        sigma: See `InstanceTask`.

    Returns:
        (B, height, width) float32 heat: the largest of the Gaussians around the centres of mass, of the parts that are
        seen; and (B, 2, height, width) float32 offsets (dy, dx) to the centre of a pixel's object, 0 where there is
        none.
    """
    batch, height, width = objects.shape
    y, x = (torch.arange(size, device=objects.device, dtype=torch.float32) for size in (height, width))
    # float32 whatever the default: Lightning's true half and double precisions change it
    heat = torch.zeros(batch, height, width, dtype=torch.float32, device=objects.device)
    offsets = torch.zeros(batch, 2, height, width, dtype=torch.float32, device=objects.device)
    for number, image in enumerate(objects):
        found, owner = image.unique(return_inverse=True)
        flat = owner.flatten()
        pixels = torch.bincount(flat, minlength=len(found)).float()
        rows, columns = y[:, None].expand(height, width), x.expand(height, width)
        centre_y, centre_x = (
            torch.zeros_like(pixels).index_add_(0, flat, place.flatten()) / pixels for place in (rows, columns)
        )
        inside = image > 0
        offsets[number, 0] = torch.where(inside, centre_y[owner] - rows, 0)
        offsets[number, 1] = torch.where(inside, centre_x[owner] - columns, 0)
        for down, across in zip(centre_y[found > 0], centre_x[found > 0], strict=True):
            one, other = (
                torch.exp(-((place - middle) ** 2) / (2 * sigma**2)) for place, middle in ((y, down), (x, across))
            )
            torch.maximum(heat[number], one[:, None] * other, out=heat[number])
    return heat, offsets


def centre_loss(found: Tensor, wanted: Tensor, known: Tensor) -> Tensor:
    """Mean squared error of heat maps over known pixels.

    Args:
        found: (B, height, width).
        wanted: (B, height, width).
        known: (B, height, width) bool.

    Returns:
        () loss; 0 where nothing is known.
    """
    error = functional.mse_loss(found, wanted, reduction="none")
    return (error * known).sum() / known.sum().clamp(min=1)


def offset_loss(found: Tensor, wanted: Tensor, inside: Tensor) -> Tensor:
    """Mean over pixels of objects of the absolute errors of both coordinates, added.

    Args:
        found: (B, 2, height, width).
        wanted: (B, 2, height, width).
        inside: (B, height, width) bool: pixels of objects.

    Returns:
        () loss, in pixels; 0 without objects.
    """
    error = functional.l1_loss(found, wanted, reduction="none").sum(dim=1)
    return (error * inside).sum() / inside.sum().clamp(min=1)
