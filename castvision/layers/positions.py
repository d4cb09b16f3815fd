"""Rotary 2-D positions of the token grid, timm's, as one node for FX."""

import torch
from timm.layers import RotaryEmbeddingCat, register_notrace_module
from torch import Tensor, nn


@register_notrace_module  # the grid's size is read from the tensor, which FX cannot follow
class RotaryPositions(nn.Module):
    """Sine and cosine of every token's (row, column) for any grid size.

    Args:
        head_dim: D, divisible by 4.
        device: Where the frequencies live.
        dtype: Kept for timm's factory signature; the frequencies stay fp32.

    Raises:
        ValueError: A head width that cannot hold two axes of sine and cosine.
    """

    def __init__(self, head_dim: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        if head_dim % 4:
            raise ValueError(f"expected a head width divisible by 4 for rotary 2-D positions, got {head_dim=}")
        self.embed = RotaryEmbeddingCat(head_dim, in_pixels=False, device=device)

    def forward(self, grid: Tensor) -> Tensor:
        """Codes (rows * cols, 2 * D) fp32 of a token map (B, rows, cols, C)."""
        codes: Tensor = self.embed.get_embed([grid.shape[1], grid.shape[2]])
        return codes

    def at(self, coordinates: Tensor) -> Tensor:
        """Codes anywhere, in between tokens or off the grid too.

        Args:
            coordinates: (..., 2) row and column, counted in tokens from the first token's centre.

        Returns:
            (..., 2 * D) fp32; those of ``forward`` at whole numbers.
        """
        bands: Tensor = self.embed.bands
        angles = (coordinates.float()[..., None] * bands).flatten(-2)  # (..., D / 2)
        return torch.cat([angles.sin().repeat_interleave(2, -1), angles.cos().repeat_interleave(2, -1)], -1)
