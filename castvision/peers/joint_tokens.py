"""Joint tokens: a few tokens that read the image, mix, and write to it, beside windows.

After Fang, Xie, Wang, Zhang, Liu and Tian, "MSG-Transformer: Exchanging Local Spatial Information by Manipulating
Messenger Tokens", arXiv 2105.15168, whose messengers belong to a window each; these belong to the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from castvision.ops.near_far import near_far
from castvision.ops.partitions import window_index, window_size_for
from castvision.peers.core import Core

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.ops.options import Operands


class JointTokens(Core):
    """Windows, and J tokens that all blocks hand on.

    The J joint tokens are the model's registers (and its class token). With t as their index and w as that of a window,

        read and mix:  Y_t = softmax(scale q_t [k_t; k]ᵀ) [v_t; v]
        write:         Y_w = softmax(scale q_w [k_t; k_w]ᵀ) [v_t; v_w]

    so what they read in one block reaches all windows in the next. Read, mix and write are one softmax for each token
    instead of three layers, as near and far has it: this is near and far without summaries, with more registers.

    Args:
        num_heads: H.
        head_dim: D.
        seed: Not used.
        window_size: Side of a window in tokens; None follows the number of tokens.
    """

    no_conversion = "it needs tokens that carry the image, which no pretrained model has"

    def __init__(self, num_heads: int, head_dim: int, seed: int = 0, *, window_size: int | None = None) -> None:
        super().__init__(num_heads, head_dim, seed)
        self.window_size = window_size

    def attend(self, x: Operands, grid: tuple[int, int], dropout_p: float) -> Tensor:
        """See :meth:`Core.attend`."""
        if x.prefix_k is None:
            raise ValueError("expected joint tokens, got no prefix token; give reg_tokens")
        size = self.window_size or window_size_for(*grid)
        index = window_index(*grid, size, size, False, x.q)  # places off the grid hold N
        return near_far(x, [index[None]], None, 0, None, dropout_p)
