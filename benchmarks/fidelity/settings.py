"""What is compared: ways to run a pretrained ViT on an image larger than it was trained on.

Sizes of windows and numbers of clusters follow the number of tokens N.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

WHOLE, TILES, CROPS, HALF = "whole", "tiles", "crops", "half"


@dataclass(frozen=True)
class Setting:
    """A way to get the features of an image.

    Attributes:
        name: For people and the JSON.
        clusters: Their number over sqrt(N), or None for those of the defaults.
        window: Side of a window over N ** (1/4), or tokens if 16 or more; None: the default.
        options: Of clustered attention; None: full attention.
        full_every: Every so many-th block keeps full attention; 0: none does.
        way: The image whole, in tiles of the model's native size that overlap by a third, in such that do not, or at
            half its size and features brought up.
    """

    name: str
    clusters: float | None = None
    window: float | None = None
    options: Mapping[str, Any] | None = field(default_factory=dict)
    full_every: int = 0
    way: str = WHOLE

    def arguments(self, rows: int, cols: int) -> dict[str, Any]:
        """Options of clustered attention on a grid of so many tokens.

        Raises:
            ValueError: The setting is full attention.
        """
        if self.options is None:
            raise ValueError(f"expected a setting with clustered attention, got {self.name!r}")
        tokens = rows * cols
        found = {"anchors": 0, **self.options}
        if self.clusters is not None:
            found["num_clusters"] = max(1, round(self.clusters * tokens**0.5))
        if self.window is not None:
            side = self.window if self.window >= 16 else 2 * round(self.window * tokens**0.25 / 2)
            found["window_size"] = min(max(2, int(side)), max(rows, cols))
        return found

    def full_blocks(self, depth: int) -> tuple[int, ...]:
        """Blocks that keep full attention."""
        if self.options is None:
            return tuple(range(depth))
        return tuple(range(self.full_every - 1, depth, self.full_every)) if self.full_every else ()


@dataclass(frozen=True)
class PeerSetting(Setting):
    """Another paper's attention, which needs no training either.

    Attributes:
        clusters: Times sqrt(N): the number that ``counted`` names, e.g. keys of a chunk, landmarks or clusters.
        counted: The peer's option that it sets; empty: nothing follows the image.
    """

    counted: str = ""

    def arguments(self, rows: int, cols: int) -> dict[str, Any]:
        """See :meth:`Setting.arguments`."""
        if self.options is None:
            raise ValueError(f"expected a setting with a peer's attention, got {self.name!r}")
        found = dict(self.options)
        if self.counted and self.clusters is not None:
            wanted = round(self.clusters * (rows * cols) ** 0.5)
            found[self.counted] = wanted if self.counted != "kernel_size" else 2 * round((wanted**0.5 - 1) / 2) + 1
        return found


_MEAN = {"summaries": "mean"}
_QUERY = {"summaries": "query_weighted"}
_ANCHORS = {**_QUERY, "anchors": 64}
FULL = Setting("full attention", options=None)
SETTINGS: tuple[Setting, ...] = (
    FULL,
    Setting("near-far 2√N, plain means", 2, 1, _MEAN),
    Setting("near-far 2√N", 2, 1, _QUERY),
    Setting("near-far 4√N", 4, 1, _QUERY),
    Setting("near-far √N, 64 anchors", 1, 1, _ANCHORS),
    Setting("near-far 2√N, 64 anchors", 2, 1, _ANCHORS),
    Setting("near-far 4√N, 64 anchors", 4, 0.75, _ANCHORS),
    Setting("near-far 4√N, 144 anchors", 4, 0.75, {**_QUERY, "anchors": 144}),
    Setting("near-far 2√N, 64 anchors on a grid", 2, 1, {**_ANCHORS, "anchor_selection": "grid"}),
    Setting("near-far 2√N, 144 anchors", 2, 1, {**_QUERY, "anchors": 144}),
    Setting("near-far 2√N, plain means, 48 anchors, wider windows", 2, 1.25, {**_MEAN, "anchors": 48}),
    Setting("near-far 2√N, plain means, 64 anchors", 2, 1, {**_MEAN, "anchors": 64}),
    Setting("near-far 2√N, plain means, 144 anchors", 2, 1, {**_MEAN, "anchors": 144}),
    Setting("near-far 2√N, 64 anchors, wider windows", 2, 1.5, _ANCHORS),
    Setting("blocks instead of clusters", 2, 1, {**_MEAN, "assignment": "blocks"}),
    Setting("random groups instead of clusters", 4, 1, {**_MEAN, "assignment": "random"}),
    Setting("own cluster instead of window", 1, None, {"neighborhood": "cluster", "assignment": "sa_topk", **_MEAN}),
    Setting("windows of 18", None, 18, {"summaries": "none"}),
    Setting("windows of 18, every third block full", None, 18, {"summaries": "none"}, full_every=3),
    PeerSetting("SMYRF, 4 rounds of √N", 1, None, {"attention": "smyrf", "rounds": 4}, counted="chunk_size"),
    PeerSetting("SMYRF, 8 rounds of 2√N", 2, None, {"attention": "smyrf", "rounds": 8}, counted="chunk_size"),
    PeerSetting("SECViT, clusters of 4√N", 4, None, {"attention": "secvit"}, counted="chunk_size"),
    PeerSetting("ClusTR, density peaks, 4√N", 4, None, {"attention": "clustr"}, counted="num_clusters"),
    PeerSetting(
        "ClusTR, k-means, 4√N, by size",
        4,
        None,
        {"attention": "clustr", "centers": "kmeans", "scales": 1, "proportional": True},
        counted="num_clusters",
    ),
    PeerSetting("Nyström, 4√N landmarks", 4, None, {"attention": "nystrom"}, counted="num_landmarks"),
    PeerSetting("neighbourhood of 4√N", 4, None, {"attention": "neighborhood"}, counted="kernel_size"),
    Setting("tiles, overlapping", options=None, way=TILES),
    Setting("half the size", options=None, way=HALF),
)

CROPS_SETTING = Setting("native crops", options=None, way=CROPS)
"""What a head is trained on by people who train on crops."""


def choose(names: list[str]) -> tuple[Setting, ...]:
    """Settings by name, full attention first: it is what the others are compared with.

    Raises:
        ValueError: An unknown name.
    """
    known = {each.name: each for each in SETTINGS}
    for name in names:
        if name not in known:
            raise ValueError(f"expected settings of {'; '.join(known)}, got {name!r}")
    return (FULL, *(known[name] for name in dict.fromkeys(names) if name != FULL.name)) if names else SETTINGS
