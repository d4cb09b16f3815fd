"""What tiled inference adds up over an image: tiles, pixels of each class, how far neighbouring tiles disagree."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from castvision.inference.blending import SeamSums

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass
class Totals:
    """What a run adds up, over all runs that were resumed."""

    channels: int = 0
    tiles_run: int = 0
    tiles_skipped: int = 0
    class_pixels: list[int] = field(default_factory=list)
    class_probability: list[float] = field(default_factory=list)
    seam: SeamSums = field(default_factory=SeamSums)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Totals:
        """The reverse of ``dataclasses.asdict``."""
        return cls(**{**state, "seam": SeamSums(**state["seam"])})

    def fresh(self) -> Totals:
        """Zeros for as many channels."""
        sums = [0] * len(self.class_pixels), [0.0] * len(self.class_probability)
        return Totals(self.channels, 0, 0, *sums)

    def plus(self, more: Totals) -> Totals:
        """The sums of both: bands are added up in order, so that sums of floats do not depend on who worked on what."""
        pixels = [a + b for a, b in zip_longest(self.class_pixels, more.class_pixels, fillvalue=0)]
        probability = [a + b for a, b in zip_longest(self.class_probability, more.class_probability, fillvalue=0.0)]
        seam = SeamSums(*(a + b for a, b in zip(*map(dataclasses.astuple, (self.seam, more.seam)), strict=True)))
        runs = self.tiles_run + more.tiles_run, self.tiles_skipped + more.tiles_skipped
        return Totals(more.channels or self.channels, *runs, pixels, probability, seam)
