"""What to measure and how long: the command line's choices as one value."""

from __future__ import annotations

from dataclasses import dataclass

SIZES = (256, 1024, 4096, 16384, 65536)
QUICK_LIMIT = 4096
"""Most tokens under ``--quick``."""


@dataclass(frozen=True)
class Settings:
    """The choices of a run.

    Attributes:
        levels: Names of :data:`benchmarks.levels.LEVELS`.
        sizes: Tokens N, ascending, for op, layer and block.
        dtypes: Of "fp32" and "bf16".
        device: "cpu" or "cuda".
        threads: Of torch.
        img_size: Pixels a side, for the models.
        peers: Models to set beside ours, by timm's names.
        quick: A minute instead of an hour.
        check: Measure what the goals need, nothing else.
    """

    levels: tuple[str, ...]
    sizes: tuple[int, ...] = SIZES
    dtypes: tuple[str, ...] = ("fp32",)
    device: str = "cpu"
    threads: int = 1
    img_size: int = 1024
    peers: tuple[str, ...] = ()
    quick: bool = False
    check: bool = False

    @property
    def clock(self) -> str:
        """What seconds are, for the reader."""
        if self.device == "cuda":
            return "CUDA events"
        return "CPU time" if self.threads == 1 else "wall time"

    @property
    def budget(self) -> float:
        """Seconds of repeats a competitor may take in a group."""
        return 0.4 if self.quick else 5.0 if self.check else 10.0

    @property
    def least(self) -> int:
        """Fewest repeats of a competitor whose single call is within reason."""
        return 2 if self.quick else 3

    @property
    def most(self) -> int:
        """Most repeats."""
        return 5 if self.quick else 25
