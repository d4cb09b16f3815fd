"""XCiT: attention between channels instead of tokens.

El-Nouby, Touvron, Caron et al., "XCiT: Cross-Covariance Image Transformers", arXiv 2106.09681.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from castvision.peers.core import Core

if TYPE_CHECKING:
    from torch import Tensor

    from castvision.ops.options import Operands


class Xcit(Core):
    """Cross-covariance attention: each channel of the output is a mean of the head's D channels.

    With k̂, q̂ of unit length along the tokens (each channel of each head) and a learned temperature τ of each head,

        Y = v softmax(k̂ᵀ q̂ / τ), the softmax over the channels of k

    The covariance is taken over the patches; prefix tokens attend to tokens, as the class token does in the paper's
    last layers, and what they hold reaches no patch. Its local patch interaction is ``local_branch``, one
    convolution instead of two.

    Args:
        num_heads: H.
        head_dim: D.
        seed: Not used.
        device: Of the temperature.
        dtype: Of the temperature.
    """

    uses_rope = False
    has_parameters = True
    no_conversion = "its temperature is a weight that no pretrained model has"

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        seed: int = 0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_heads, head_dim, seed)
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1, device=device, dtype=dtype))

    def attend(self, x: Operands, grid: tuple[int, int], dropout_p: float) -> Tensor:
        """See :meth:`Core.attend`."""
        q, k, v = (each.permute(0, 2, 3, 1) for each in (x.q, x.k, x.v))  # B, H, D, N
        unit_k, unit_q = F.normalize(k, dim=-1), F.normalize(q, dim=-1)
        logits = unit_q @ unit_k.transpose(-1, -2) / self.temperature.to(q.dtype)
        weights = F.dropout(logits.softmax(-1), dropout_p)
        return (weights @ v).permute(0, 3, 1, 2)
