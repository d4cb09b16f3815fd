"""Pictures of the tabs, and tables as HTML; what a visitor's files are called is escaped here."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from castvision.visualization.pictures import cluster_colours, resize_labels

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from castvision.visualization import ClusterMap
    from castvision.visualization.pictures import RGB
    from castvision.visualization.point_weights import PointShares

    from .sessions import Point

_WHITE, _BLACK = np.uint8(255), np.uint8(0)


def token_at(point: Point, grid: tuple[int, int]) -> tuple[int, int]:
    """(row, col) of the token at a place in the photograph.

    Raises:
        ValueError: A place outside it.
    """
    down, across = point
    if not (0 <= down <= 1 and 0 <= across <= 1):
        raise ValueError(f"expected a place inside the photograph, 0 to 1 down and across, got {down:g}, {across:g}")
    return min(int(down * grid[0]), grid[0] - 1), min(int(across * grid[1]), grid[1] - 1)


def marked(picture: RGB, point: Point) -> RGB:
    """A ring, white with a black rim, around a place: seen on light and dark."""
    height, width = picture.shape[:2]
    radius = max(6.0, max(height, width) / 60)
    rows, cols = np.ogrid[:height, :width]
    apart = np.hypot(rows - point[0] * height, cols - point[1] * width)
    thick = max(1.5, radius / 5)
    drawn = picture.copy()
    drawn[np.abs(apart - radius) < 2 * thick] = _BLACK
    drawn[np.abs(apart - radius) < thick] = _WHITE
    return drawn


def lit(picture: RGB, cluster_map: ClusterMap, shares: PointShares, row: int, col: int) -> RGB:
    """What a point attends to: its window as it is in a white frame, clusters in their colours, brighter by weight."""
    size = picture.shape[0], picture.shape[1]
    membership = resize_labels(cluster_map.membership.cpu().numpy(), size)
    windows = cluster_map.windows.cpu().numpy()
    window = resize_labels(windows, size) == windows[row, col]
    base = picture.astype(np.float32)
    result = 0.25 * base
    if cluster_map.num_clusters:
        weight = shares.clusters.clamp(min=0).numpy()
        strength = np.sqrt(weight / max(float(weight.max()), 1e-12))[np.maximum(membership, 0)]
        strength = np.where(membership < 0, 0.0, strength)[..., None].astype(np.float32)
        colours = cluster_colours(cluster_map.num_clusters).astype(np.float32)[np.maximum(membership, 0)]
        result = result * (1 - 0.75 * strength) + 0.75 * strength * (0.35 * base + 0.65 * colours)
    result[window] = base[window]
    frame = _border(window, max(2, max(size) // 250))
    result[frame] = 255
    shown: RGB = np.rint(result).clip(0, 255).astype(np.uint8)
    return shown


def _border(
    area: np.ndarray[tuple[int, int], np.dtype[np.bool_]], width: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Pixels around an area, as far as ``width``."""
    grown = area.copy()
    for _ in range(width):
        wider = grown.copy()
        wider[1:] |= grown[:-1]
        wider[:-1] |= grown[1:]
        wider[:, 1:] |= grown[:, :-1]
        wider[:, :-1] |= grown[:, 1:]
        grown = wider
    return grown & ~area


def table(header: Sequence[str], rows: Iterable[Sequence[str | tuple[int, ...]]], caption: str) -> str:
    """A table as HTML; a cell that is a colour becomes a swatch, all else is escaped."""
    lines = [f"<caption>{escape(caption)}</caption>"]
    lines.append("<tr>" + "".join(f'<th scope="col">{escape(each)}</th>' for each in header) + "</tr>")
    for row in rows:
        lines.append("<tr>" + "".join(f"<td>{_cell(cell)}</td>" for cell in row) + "</tr>")
    return '<div class="wide"><table>' + "".join(lines) + "</table></div>"


def _cell(cell: str | tuple[int, ...]) -> str:
    if isinstance(cell, str):
        return escape(cell)
    colour = "#{:02x}{:02x}{:02x}".format(*cell) if cell else "transparent"
    return f'<span class="swatch" style="background:{colour}"></span>'


def line(text: str, *, is_error: bool = False) -> str:
    """One line that a screen reader announces."""
    role, kind = ("alert", "told error") if is_error else ("status", "told")
    return f'<p role="{role}" class="{kind}">{escape(text)}</p>'
