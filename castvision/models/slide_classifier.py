"""A class for a slide from the embeddings of its tiles, and how much each tile had to say in it."""

from __future__ import annotations

import difflib
from typing import Any

from torch import Tensor, nn

from castvision.heads.bags import GatedAttentionPool, MeanPool

POOLS: dict[str, type[nn.Module]] = {"gated_attention": GatedAttentionPool, "mean": MeanPool}
"""Names of the ways to make one vector of a bag."""


class SlideClassifier(nn.Module):
    """Embeddings normalised and mapped to one width, pooled by weights, classified.

    Args:
        pool: A key of `POOLS`.
        in_chans: Channels of the embeddings.
        num_classes: Logits.
        width: Channels after the map.
        hidden: See `GatedAttentionPool`.
        dropout: Probability of dropping a channel after the map, while training.

    Raises:
        ValueError: An unknown pool, a number below 1, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        pool: str = "gated_attention",
        *,
        in_chans: int,
        num_classes: int,
        width: int = 256,
        hidden: int = 128,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if pool not in POOLS:
            near = difflib.get_close_matches(pool, POOLS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected one of {', '.join(POOLS)} for bags of embeddings, got {pool!r}{hint}")
        if min(in_chans, num_classes, width, hidden) < 1 or not 0 <= dropout < 1:
            raise ValueError(
                f"expected numbers >= 1 and 0 <= dropout < 1, got {in_chans=}, {num_classes=}, {width=}, {hidden=}, "
                f"{dropout=}"
            )
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.embed = nn.Sequential(nn.LayerNorm(in_chans), nn.Linear(in_chans, width), nn.ReLU(), nn.Dropout(dropout))
        self.pool = POOLS[pool](width, hidden)
        self.classifier = nn.Linear(width, num_classes)

    def get_classifier(self) -> nn.Linear:
        """The last layer, as timm's models name it."""
        return self.classifier

    def forward(self, bag: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            bag: (B, N, in_chans).
            mask: (B, N) bool, True where there is a tile and no padding; None = everywhere.

        Returns:
            (B, num_classes).

        Raises:
            ValueError: Embeddings of another width.
        """
        return self.with_weights(bag, mask)[0]

    def with_weights(self, bag: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits (B, num_classes), and the weights (B, N) of the tiles, whose sum is 1; see `forward`."""
        if bag.ndim != 3 or bag.shape[-1] != self.in_chans:
            raise ValueError(f"expected bags (B, tiles, {self.in_chans}), got {tuple(bag.shape)}")
        found: Any = self.embed(bag)
        weights: Tensor = self.pool(found, mask)
        slide = (weights.to(found.dtype)[:, None] @ found)[:, 0]
        logits: Tensor = self.classifier(slide)
        return logits, weights
