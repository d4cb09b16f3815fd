"""Centres of objects and offsets to them, beside the classes of pixels, from any backbone and any head.

As in Panoptic-DeepLab (Cheng et al., 2020, arXiv 1911.10194): a heat map with a maximum at each object's centre, and
for each pixel the way (dy, dx) to the centre of the object it belongs to. There each has a decoder of its own; here the
head gives three more maps, so that every head has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from castvision.models.segmenter import Segmenter, create_segmenter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

CENTRE_MAPS = 3
"""Beside the classes: heat, dy and dx, both in pixels."""


class CentreSegmenter(Segmenter):
    """A segmenter whose head gives three more maps; called as others are, it gives the classes' logits alone.

    Args:
        backbone: See `Segmenter`.
        head: Of ``num_classes`` + 3 maps.
        num_classes: Classes.
        out_indices: See `Segmenter`.

    Raises:
        TypeError: See `Segmenter`.
        ValueError: See there.
    """

    def __init__(
        self, backbone: nn.Module, head: nn.Module, *, num_classes: int, out_indices: Sequence[int] | None = None
    ) -> None:
        super().__init__(backbone, head, out_indices=out_indices)
        self.num_classes = num_classes

    def forward(self, image: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """(B, num_classes, height, width) logits; see `Segmenter.forward`."""
        return self.all_maps(image, pixel_mask)[:, : self.num_classes]

    def all_maps(self, image: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """Logits, and centres and offsets as the head gives them.

        Args:
            image: See `Segmenter.forward`.
            pixel_mask: See there.

        Returns:
            (B, num_classes + 3, height, width): logits, heat (about 1 at a centre, 0 far from it), dy and dx in pixels.
        """
        return super().forward(image, pixel_mask)

    def with_centres(self, image: Tensor, pixel_mask: Tensor | None = None) -> Tensor:
        """As `all_maps`, with probabilities in place of logits, so that overlapping tiles can be averaged.

        Args:
            image: See `Segmenter.forward`.
            pixel_mask: See there.

        Returns:
            (B, num_classes + 3, height, width).
        """
        maps = self.all_maps(image, pixel_mask).float()
        return torch.cat([maps[:, : self.num_classes].softmax(dim=1), maps[:, self.num_classes :]], dim=1)


def create_centre_segmenter(model_name: str, num_classes: int, **options: Any) -> CentreSegmenter:
    """Build backbone and head by name.

    Args:
        model_name: See `create_segmenter`.
        num_classes: Logits per pixel; the head gives three maps more.
        **options: See `create_segmenter`.

    Returns:
        The segmenter, untrained unless ``model_kwargs`` says ``pretrained: True``.

    Raises:
        ValueError: See `create_segmenter`.
        RuntimeError: See there.
        TypeError: See there.
    """
    if num_classes < 2:
        raise ValueError(f"expected num_classes >= 2 (a background and something on it), got {num_classes=}")
    plain = create_segmenter(model_name, num_classes + CENTRE_MAPS, **options)
    return CentreSegmenter(plain.backbone, plain.head, num_classes=num_classes, out_indices=plain.out_indices)
