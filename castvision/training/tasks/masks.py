"""Masks predicted from a ViT's tokens while it learns something else."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional


class TokenMasks(nn.Module):
    """One linear layer from tokens to classes of pixels, brought to the image's size.

    Args:
        backbone: A ViT of timm's or ours: tokens in rows on a grid, behind its prefix tokens.
        num_classes: Of the masks.

    Raises:
        ValueError: A backbone without such tokens.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        patches: Any = getattr(backbone, "patch_embed", None)
        width, prefix = getattr(backbone, "embed_dim", None), getattr(backbone, "num_prefix_tokens", None)
        grid = getattr(patches, "grid_size", None)
        if not isinstance(width, int) or not isinstance(prefix, int) or grid is None:
            raise ValueError(
                f"expected a ViT, whose tokens lie on a grid, for masks beside labels, got {type(backbone).__name__}; "
                "leave mask_weight out"
            )
        self.grid_size = (int(grid[0]), int(grid[1]))
        self.num_prefix_tokens = prefix
        self.project = nn.Linear(width, num_classes)

    def forward(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits of pixels.

        Args:
            features: (B, P + N, C), of ``forward_features`` for images of the size the model was built for.
            size: (height, width) of the result.

        Returns:
            (B, num_classes, height, width).
        """
        tokens: Tensor = self.project(features[:, self.num_prefix_tokens :])
        grid = tokens.transpose(1, 2).reshape(len(tokens), -1, *self.grid_size)
        return grid if self.grid_size == tuple(size) else functional.interpolate(grid, size, mode="bilinear")
