"""Where tiles lie: integers only. An image is cut into overlapping tiles of one size, band by band.

Along one axis, with ``stride = tile - overlap`` (h = halo, the pixels discarded on each side that has a neighbour):

    tile i      |--h--|######################|zone|--h--|
    tile i + 1                         |--h--|zone|######################|--h--|

Neighbours share ``overlap`` pixels: the halo of each is discarded, the ``zone = overlap - 2 * halo`` between is
blended. At the image's border nothing is discarded, and the last tile is shifted inside instead of padded, so that a
network sees the border just as it does in the whole image; its used part still begins where the unshifted tile's would,
so that no pixel is used by more than two tiles along an axis.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels of the image.

    Attributes:
        start: First pixel read.
        stop: End of what is read; beyond the image only if the image is shorter than a tile.
        low: First pixel used, after the margin at the beginning.
        done: Pixels ``low..done`` are complete once this tile is joined to the one before it.
        high: End of what is used; ``done..high`` is blended with the next tile.
    """

    start: int
    stop: int
    low: int
    done: int
    high: int


@dataclass(frozen=True)
class Tile:
    """A tile of a grid.

    Attributes:
        row: Its band.
        col: Its index in the band.
        y: Its rows.
        x: Its columns.
    """

    row: int
    col: int
    y: Span
    x: Span

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """Pixels discarded at the top, left, bottom and right of what is read."""
        y, x = self.y, self.x
        return y.low - y.start, x.low - x.start, y.stop - y.high, x.stop - x.high


@dataclass(frozen=True)
class TileGrid:
    """All tiles of an image. Made by `make_grid`.

    Attributes:
        height: Of the image.
        width: Of the image.
        tile: (height, width) of every tile.
        zone: Width of the blended strip between neighbours.
        rows: Bands, top to bottom.
        cols: Of every band, left to right.
    """

    height: int
    width: int
    tile: tuple[int, int]
    zone: int
    rows: tuple[Span, ...]
    cols: tuple[Span, ...]

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.cols)

    def band(self, row: int) -> tuple[Tile, ...]:
        """The tiles of one band, left to right."""
        return tuple(Tile(row, col, self.rows[row], span) for col, span in enumerate(self.cols))


def make_grid(size: tuple[int, int], tile: int | tuple[int, int], overlap: int, halo: int) -> TileGrid:
    """Lay tiles over an image.

    Args:
        size: (height, width) of the image.
        tile: Side of a tile, or (height, width).
        overlap: Pixels neighbours share.
        halo: Pixels each discards on a side that has a neighbour.

    Returns:
        The grid; every pixel of the image is used by one or two tiles along each axis.

    Raises:
        ValueError: A size < 1, or not ``2 * halo <= overlap < tile`` and ``2 * (overlap - halo) <= tile``.
    """
    height, width = size
    tile = (tile, tile) if isinstance(tile, int) else tile
    if min(height, width, *tile) < 1:
        raise ValueError(f"expected image and tile of at least one pixel, got {size=}, {tile=}")
    if not 0 <= 2 * halo <= overlap < min(tile) or 2 * (overlap - halo) > min(tile):
        raise ValueError(
            f"expected 2 * halo <= overlap < tile and 2 * (overlap - halo) <= tile, got {tile=}, {overlap=}, {halo=}; "
            "use larger tiles or less overlap"
        )
    rows, cols = (_spans(length, side, overlap, halo) for length, side in zip((height, width), tile, strict=True))
    return TileGrid(height, width, tile, overlap - 2 * halo, rows, cols)


def _spans(length: int, tile: int, overlap: int, halo: int) -> tuple[Span, ...]:
    if length <= tile:
        return (Span(0, tile, 0, length, length),)
    stride = tile - overlap
    last = -(-(length - tile) // stride)  # the first tile that reaches the end
    spans = []
    for index in range(last + 1):
        start = min(index * stride, length - tile)
        low = index * stride + halo if index else 0
        is_last = index == last
        done = length if is_last else (index + 1) * stride + halo
        high = length if is_last else index * stride + tile - halo
        spans.append(Span(start, start + tile, low, done, high))
    return tuple(spans)
