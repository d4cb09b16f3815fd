"""Which tiles of a slide speak for it: a weight for each element of a bag, from its embedding alone.

These are no decoders of pixels: `castvision.models.slide_classifier` builds a classifier of bags from them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GatedAttentionPool(nn.Module):
    """Gated attention of Ilse, Tomczak and Welling (arXiv 1802.04712, equation 9).

    The weights are softmax over the bag of w · (tanh(V h) ⊙ sigmoid(U h)), which know neither order nor place.

    Args:
        width: Channels of an element.
        hidden: Channels of V h and U h.

    Raises:
        ValueError: A number below 1.
    """

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()
        if min(width, hidden) < 1:
            raise ValueError(f"expected width and hidden >= 1, got {width=}, {hidden=}")
        self.value = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1)

    def forward(self, bag: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights of the elements.

        Args:
            bag: (B, N, width).
            mask: (B, N) bool, True where there is an element and no padding; None = everywhere.

        Returns:
            (B, N) float32, of each bag at least 0 and with the sum 1; 0 in the padding.
        """
        scores: Tensor = self.score(self.value(bag).tanh() * self.gate(bag).sigmoid())[..., 0].float()
        return _softmax(scores, mask)


class MeanPool(nn.Module):
    """Every element weighs the same: the control of `GatedAttentionPool`.

    Args:
        width: As above; makes no difference.
        hidden: Likewise.
    """

    def __init__(self, width: int, hidden: int = 128) -> None:
        super().__init__()

    def forward(self, bag: Tensor, mask: Tensor | None = None) -> Tensor:
        """See `GatedAttentionPool.forward`."""
        return _softmax(bag.new_zeros(bag.shape[:2], dtype=torch.float32), mask)


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    return (scores if mask is None else scores.masked_fill(~mask, float("-inf"))).softmax(dim=1)
