"""Tokens beside an image's own, such as those of a coarse view of its surroundings."""

from typing import List, NamedTuple, Optional, Tuple  # noqa: UP035 - as in the backbone, which is scripted

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
    grid_size: Tuple[int, int]  # noqa: UP006


def append_extra(
    x: Tensor,
    rope: Optional[Tensor],  # noqa: UP045
    grid: List[int],  # noqa: UP006
    token_mask: Optional[Tensor],  # noqa: UP045
    extra: ExtraTokens,
) -> Tuple[Tensor, Tensor, List[int], Optional[Tensor]]:  # noqa: UP006, UP045
    """What the blocks are given, with the extra tokens after the image's."""
    if rope is None:
        raise ValueError("expected use_rot_pos_emb=True with extra tokens: nothing else says where they lie")
    batch, number = x.shape[0], extra.tokens.shape[1]
    rope = torch.cat([rope.expand(batch, -1, -1), extra.rope], 1)[:, None]  # B, 1, N + N', 2D
    if token_mask is not None:
        token_mask = torch.nn.functional.pad(token_mask, (0, number), value=True)
    return torch.cat([x, extra.tokens], 1), rope, [*grid, *extra.grid_size], token_mask
