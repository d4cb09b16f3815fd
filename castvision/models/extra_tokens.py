"""Tokens beside an image's own, such as those of a coarse view of its surroundings."""

from typing import NamedTuple

import torch
from torch import Tensor


class ExtraTokens(NamedTuple):
    """Tokens that an image's may attend to, beside its own.

    Attributes:
        tokens: (B, N', C), ready for the first block.
        rope: Their rotary codes, (B, N', 2D).
        grid_size: (rows, cols) of the grid they make up.
    """

    tokens: Tensor
    rope: Tensor
    grid_size: tuple[int, int]


def append_extra(
    x: Tensor,
    rope: Tensor | None,
    grid: list[int],
    token_mask: Tensor | None,
    extra: ExtraTokens,
) -> tuple[Tensor, Tensor, list[int], Tensor | None]:
    """What the blocks are given, with the extra tokens after the image's."""
    if rope is None:
        raise ValueError("expected use_rot_pos_emb=True with extra tokens: nothing else says where they lie")
    batch, number = x.shape[0], extra.tokens.shape[1]
    rope = torch.cat([rope.expand(batch, -1, -1), extra.rope], 1)[:, None]  # B, 1, N + N', 2D
    if token_mask is not None:
        token_mask = torch.nn.functional.pad(token_mask, (0, number), value=True)
    return torch.cat([x, extra.tokens], 1), rope, [*grid, *extra.grid_size], token_mask
