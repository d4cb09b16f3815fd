"""Pictures as arrays: an image as a person sees it, windows, clusters and masks laid over it."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from castvision.data.reading.labels import is_background
from castvision.data.reading.pixels import LUMA, Pixels, nearest, to_picture

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.visualization.clusters import ClusterMap

RGB = np.ndarray[Any, np.dtype[np.uint8]]
Labels = np.ndarray[Any, np.dtype[np.int64]]

_PALETTE_SIZE = 512
_LIFT = 48.0


def display_picture(image: Pixels, *, min_side: int = 384, max_side: int = 1024) -> RGB:
    """Make an image visible: 8-bit RGB, small ones enlarged by a whole factor without smoothing, large ones reduced.

    Values are shown as `to_picture` has them. One channel becomes grey, two become red and
    green, of more the first three are shown.

    Args:
        image: (height, width, channels), any numeric dtype.
        min_side: Images whose longer side is smaller are enlarged to at least this.
        max_side: Images whose longer side is larger are reduced to this.

    Returns:
        (height', width', 3) uint8.

    Raises:
        ValueError: Not (height, width, channels), or empty.
    """
    if image.ndim != 3 or image.size == 0:
        raise ValueError(f"expected a non-empty image (height, width, channels), got {image.shape=}")
    channels = to_picture(image[..., :3])
    if channels.shape[-1] == 1:
        channels = np.repeat(channels, 3, axis=-1)
    if channels.shape[-1] == 2:
        channels = np.concatenate([channels, np.zeros_like(channels[..., :1])], axis=-1)
    height, width = channels.shape[:2]
    longer = max(height, width)
    if longer > max_side:
        size = tuple(max(1, round(side * max_side / longer)) for side in (width, height))
        return np.asarray(Image.fromarray(channels).resize(size, Image.Resampling.LANCZOS))
    factor = -(-min_side // longer)
    return channels.repeat(factor, axis=0).repeat(factor, axis=1)


def resize_labels(labels: Labels, size: tuple[int, int]) -> Labels:
    """Nearest-neighbour resizing of a label map that covers the whole picture.

    Args:
        labels: (rows, cols), integers.
        size: (height, width) of the result.

    Returns:
        (height, width), the same dtype.
    """
    row_of, col_of = (nearest(0, here, own, here) for here, own in zip(size, labels.shape, strict=True))
    return labels[row_of[:, None], col_of[None, :]]


@lru_cache(maxsize=1)
def _palette() -> RGB:
    """512 colours, each as far (CIELAB) from all earlier ones as possible, so that any first n are well apart."""
    steps = np.linspace(0, 255, 18)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(candidates / 255)
    lightness, chroma = lab[:, 0], np.hypot(lab[:, 1], lab[:, 2])
    kept = (lightness > 48) & (lightness < 90) & (chroma > 38)
    candidates, lab = candidates[kept], lab[kept]
    chosen = [int(np.argmin(np.abs(candidates - (255, 60, 60)).sum(axis=1)))]
    distance = np.full(len(lab), np.inf)
    for _ in range(_PALETTE_SIZE - 1):
        distance = np.minimum(distance, ((lab - lab[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(distance.argmax()))
    colours: RGB = np.rint(candidates[chosen]).astype(np.uint8)
    return colours


def _lab(rgb: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Colours (n, 3) of sRGB, 0..1, in CIELAB under D65: the standard's formulas, as kornia has them."""
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    to_xyz = [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
    xyz = linear @ np.transpose(to_xyz) / (0.95047, 1.0, 1.08883)
    root = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 4 / 29)
    x, y, z = root[:, 0], root[:, 1], root[:, 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def cluster_colours(count: int) -> RGB:
    """Colours of clusters (or classes) 0..count-1: always the same, the first ones the most different.

    Args:
        count: How many, >= 1; beyond 512 they repeat.

    Returns:
        (count, 3) uint8.
    """
    if count < 1:
        raise ValueError(f"expected count >= 1, got {count=}")
    return _palette()[np.arange(count) % _PALETTE_SIZE]


def overlay_labels(
    picture: RGB, labels: Labels, *, opacity: float = 0.5, untinted: int | None = None, line: int = 2
) -> RGB:
    """Tint each label's area in its own colour and draw its outline; the picture stays visible under the tint.

    Args:
        picture: (height, width, 3) uint8.
        labels: (height, width) integers >= -1; -1 (no cluster) is darkened instead of tinted.
        opacity: Of the tint, 0..1.
        untinted: A label whose area is left as it is, such as a class "background"; None = every label is tinted.
        line: Width of the outlines in pixels, >= 1: a dark line between areas and, from 2 on, inside each a band of its
            full colour.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ValueError: Sizes differ, opacity out of range, or line < 1.
    """
    if picture.shape[:2] != labels.shape:
        raise ValueError(f"expected picture and labels of one size, got {picture.shape[:2]=}, {labels.shape=}")
    if not 0 <= opacity <= 1 or line < 1:
        raise ValueError(f"expected opacity in 0..1 and line >= 1, got {opacity=}, {line=}")
    colours = cluster_colours(max(int(labels.max()) + 1, 1)).astype(np.float32)
    # channels first: numpy is several times faster along long rows than along three channels
    grey = picture.astype(np.float32) @ np.asarray(LUMA, dtype=np.float32)
    base = np.moveaxis(picture, 2, 0).astype(np.float32, order="C")
    # less of the picture's own colour, all of its light and dark; lifted, so that tints show on black too
    muted = _LIFT + (1 - _LIFT / 255) * (0.3 * base + 0.7 * grey)
    tint = colours.T.take(np.maximum(labels, 0), axis=1)
    result = np.where(labels < 0, 0.25 * grey, (1 - opacity) * muted + opacity * tint)
    tinted = labels >= 0
    if untinted is not None:
        result = np.where(labels == untinted, base, result)
        tinted &= labels != untinted
    if line > 1:
        band = _near_border(labels, 2 * line) & tinted
        result = np.where(band, 0.25 * muted + 0.75 * tint, result)
    result = np.where(_near_border(labels, line // 2), (0.5 if line == 1 else 0.3) * result, result)
    return np.ascontiguousarray(np.moveaxis(np.rint(result).clip(0, 255).astype(np.uint8), 0, 2))


def _near_border(labels: Labels, distance: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Pixels whose label differs within ``distance`` in a row or column; 0: only the last pixel before a border."""
    border = np.zeros(labels.shape, dtype=bool)
    for shift in range(1, max(distance, 1) + 1):
        rows = labels[shift:] != labels[:-shift]
        cols = labels[:, shift:] != labels[:, :-shift]
        border[:-shift] |= rows
        border[:, :-shift] |= cols
        if distance:
            border[shift:] |= rows
            border[:, shift:] |= cols
    return border


def overlay_mask(picture: RGB, mask: Labels, *, opacity: float = 0.5, untinted: int | None = None) -> RGB:
    """Lay a mask of any size over the whole picture, with outlines that leave the inside of its pixels visible.

    Args:
        picture: (height, width, 3) uint8.
        mask: (rows, cols) integers >= -1, see `overlay_labels`.
        opacity: Of the tint, 0..1.
        untinted: A label whose area is left as it is; None = every label is tinted.

    Returns:
        (height, width, 3) uint8.
    """
    labels = resize_labels(mask, (picture.shape[0], picture.shape[1]))
    return overlay_labels(picture, labels, opacity=opacity, untinted=untinted, line=_line_width(picture, mask))


def _line_width(picture: RGB, mask: Labels) -> int:
    cell = min(picture.shape[0] / mask.shape[0], picture.shape[1] / mask.shape[1])
    return int(max(1, min(4, round(cell / 14))))


def background_class(names: Sequence[str]) -> int | None:
    """The class that means "nothing here", is drawn untinted and has no polygons: the first, if it is named so.

    Of two classes without names, the first as well.
    """
    is_named_so = bool(names) and is_background(names[0])
    return 0 if is_named_so or list(names) == ["class 0", "class 1"] else None


def overlay_clusters(picture: RGB, cluster_map: ClusterMap, *, opacity: float = 0.5) -> RGB:
    """Lay one layer's clusters over the picture, white lines between its windows; tokens in no cluster are darkened.

    Args:
        picture: (height, width, 3) uint8, the image the model saw, at any size.
        cluster_map: One entry of `castvision.visualization.clusters`; without clusters its windows are tinted.
        opacity: Of the tint, 0..1.

    Returns:
        (height, width, 3) uint8.
    """
    clusters = (cluster_map.membership if cluster_map.num_clusters else cluster_map.windows).detach().cpu().numpy()
    result = overlay_mask(picture, clusters, opacity=opacity)
    if cluster_map.window_size is not None:
        line = _line_width(picture, clusters)
        windows = resize_labels(cluster_map.windows.detach().cpu().numpy(), (picture.shape[0], picture.shape[1]))
        result[_near_border(windows, line // 2 + 1)] = 0  # white shows on dark tints, its black seam on light ones
        result[_near_border(windows, line // 2)] = 255
    return result


def layer_name(cluster_map: ClusterMap) -> str:
    """The block's name without wrappers and the attention inside: "backbone.blocks.3.attn" becomes "blocks.3"."""
    name = cluster_map.layer.removesuffix(".attn")
    for wrapper in ("backbone.", "model."):
        name = name.removeprefix(wrapper)
    return name


def cluster_text(cluster_map: ClusterMap) -> str:
    """One line on windows and clusters, and a second where clusters are empty or tokens in none or in several."""
    options, size = cluster_map.options, cluster_map.window_size
    count = cluster_map.num_clusters
    kind = {"random": "random cluster", "blocks": "block"}.get(options.assignment, "content cluster")
    clusters = f"{count:,} {kind}{'' if count == 1 else 's'}" if count else "no clusters"
    shifted = "shifted " if options.shift_windows else ""
    windows = "" if size is None else f", {shifted}windows of {size[0]} × {size[1]}"
    none, _, several = cluster_map.coverage
    notes = []
    if cluster_map.num_dead_clusters:
        notes.append(f"{cluster_map.num_dead_clusters:,} without a token")
    if count and none:
        notes.append(f"{_short(none)} of tokens in none")
    if several:
        notes.append(f"{_short(several)} in several" if none else f"{_short(several)} of tokens in several")
    return clusters + windows + ("\n" + ", ".join(notes) if notes else "")


def _short(share: float) -> str:
    return f"{share:.2f}" if share in (0.0, 1.0) or 0.01 <= share <= 0.99 else f"{share:.3f}"


def as_png(pixels: np.ndarray[Any, np.dtype[Any]]) -> bytes:
    """The bytes of a PNG: of a picture (height, width, 3) uint8, or of labels (height, width) uint8 or uint16."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
