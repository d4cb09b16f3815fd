"""Everything that the search for paths looks up, computed once per spec and margin.

A stamp is a picture of a paddle in one direction: its ink, and the halo that keeps others away. The occupancy of the
image is never drawn while paths are searched: it is the highest of the stamps placed so far, so every question to it
("how near is the next paddle?", "does this one overlap?") becomes a look-up in a stamp's table.

A direction ``t`` points to ``(sin t, cos t)`` in (y, x), y down. There are D = 360 + K stamps: whole degrees for the
first paddle of a chain, and for each of the K pixels on the circle on which a chain continues, the direction back to
the circle's centre.

NOTE: the public generator rounds moves up, ``ceil(position + distance * sin(angle))``, in double precision. Where the
result is whole on paper the last bit decides: cos(-120 degrees) comes out a little above -1/2, sin(180 degrees) above 0
(which moves pixels near the top or left border only). LRA's images were made so; the same sums are formed here.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from castvision.data.synthetic.pathfinder.spec import SUPERSAMPLING, PathfinderSpec

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

NUM_DEGREES = 360
"""Stamps 0..359 belong to first paddles, at ``index - 180`` degrees; the rest to continuations."""

CLASH = 459
"""A paddle is refused where its halo and the occupancy (each 0..255) add up to this, 1.8 of full."""
TAKEN = 76
"""A pixel is taken, for the start of a distractor, where the occupancy is above this, 0.3 of full."""


class Tables(NamedTuple):
    """Sizes and look-up tables for one margin (D stamps; all offsets are (dy, dx))."""

    size: int
    padding: int
    margin: int
    radius: int
    near: int  # paddles farther than this from an anchor (in y or x) cannot matter to the next paddle
    seed_distance: int
    path_length: int
    distractor_length: int
    num_distractors: int
    ink: Bytes  # (D, 2R + 1, 2R + 1)
    halo: Bytes  # (D, 2R + 1, 2R + 1)
    wide_halo: Bytes  # (D, 2(R + margin) + 1, …): highest halo within one margin
    core: Ints  # (D, P, 3): offset of a pixel that can clash, and the occupancy from which on it does
    core_count: Ints  # (D,)
    core_box: Ints  # (D, 4): first and last row, first and last column of these pixels
    advance: Floats  # (D, 2): from an anchor to the next one
    circle: Ints  # (K, 2): from an anchor to the possible tips
    turns: Ints  # (D, K): which of them a heading allows
    turn_count: Ints  # (D,)
    turn_weight: Floats  # (D, K)
    seed_head: Floats  # (360, 2): from a tail to the head
    seed_back: Floats  # (360, 2): from the head to the anchor, one margin behind the tail
    seed_offsets: Floats  # (360, 2): from path one's tail to path two's
    first_seeds: Ints  # (S,): directions in which path one can start
    first_box: Ints  # (360, 4): where its tail may be
    foot: Ints  # (360, F, 2): pixels that must be free for a distractor's start
    foot_count: Ints  # (360,)
    seed_works: Bytes  # (360,): 0 where the border fault refuses the direction
    dots: Bytes  # (2E + 1, 2E + 1, 2E + 1, 2E + 1): see draw_dots
    brightness: Floats  # (3, 256): of ink of paths, ink of distractors and dots


@lru_cache(maxsize=16)
def make_tables(spec: PathfinderSpec, margin: int) -> Tables:
    """Tables for a spec and one of its margins.

    Raises:
        ValueError: If no direction leaves path one room to start.
    """
    length = spec.paddle_length
    circle = circle_offsets(length + margin)
    headings = seed_angles() + [math.atan2(dy, dx) for dy, dx in circle.tolist()]
    facing = seed_angles() + [_opposite(heading) for heading in headings[NUM_DEGREES:]]
    ink, halo = draw_stamps(facing, length, spec.paddle_thickness, margin)
    radius = ink.shape[-1] // 2
    foot, foot_count = _footprints(halo[:NUM_DEGREES], radius, length + margin)
    works = np.array([_seed_works(foot[i, :count], spec.mode) for i, count in enumerate(foot_count)], np.uint8)
    first_box, first_seeds = _first_starts(spec, foot, foot_count, works)
    edges = ((0, 0), (margin, margin), (margin, margin))
    return Tables(
        spec.img_size,
        spec.padding,
        margin,
        radius,
        length + margin + 2 * radius,
        spec.seed_distance,
        spec.contour_length,
        spec.distractor_length,
        spec.num_distractors,
        ink,
        halo,
        dilate(np.pad(halo, edges), disc(margin)),
        *_cores(halo, radius),
        np.array([polar(angle, length + 2 * margin) for angle in headings]),
        circle,
        *_turns(headings, spec.continuity),
        np.array([polar(angle, length) for angle in seed_angles()]),
        np.array([polar(_opposite(angle), length + margin) for angle in seed_angles()]),
        np.array([polar(math.radians(degree), spec.seed_distance) for degree in range(NUM_DEGREES)]),
        first_seeds,
        first_box,
        foot,
        foot_count,
        works,
        draw_dots(spec.marker_radius),
        _brightness(spec),
    )


def _brightness(spec: PathfinderSpec) -> Floats:
    """Ink times contrast. NOTE: in single precision as in the public generator, since it decides many rounding ties."""
    ink = np.arange(256, dtype=np.float32) / np.float32(255)
    contrasts = np.array([spec.path_contrast, spec.distractor_contrast, 1], np.float32)
    return (contrasts[:, None] * ink).astype(np.float64)


def _opposite(angle: float) -> float:
    """The direction back, within half a turn of zero."""
    return angle + math.pi if angle < 0 else angle - math.pi


def _cores(halo: Bytes, radius: int) -> tuple[Ints, Ints, Ints]:
    """For each stamp the pixels whose halo is strong enough to clash with a full one."""
    strong = halo >= CLASH - 255
    counts = strong.sum((1, 2)).astype(np.int32)
    core = np.zeros((len(halo), int(counts.max()), 3), np.int32)
    boxes = np.zeros((len(halo), 4), np.int32)
    for i, stamp in enumerate(halo):
        pixels = np.argwhere(strong[i])
        core[i, : counts[i], :2] = pixels - radius
        core[i, : counts[i], 2] = CLASH - stamp[strong[i]].astype(np.int32)
        low, high = pixels.min(0) - radius, pixels.max(0) - radius
        boxes[i] = low[0], high[0], low[1], high[1]
    return core, counts, boxes


def _turns(headings: list[float], continuity: float) -> tuple[Ints, Ints, Floats]:
    """Which points of the circle each heading may take, and how much it likes them: cos² of the scaled angle."""
    angles = np.array(headings)
    difference = np.abs(angles[:, None] - angles[None, NUM_DEGREES:])  # (D, K)
    difference = np.minimum(difference, np.abs(2 * math.pi - difference))
    weight = np.cos(np.minimum(continuity * difference, math.pi / 2)) ** 2
    allowed = weight > 1e-12
    counts = allowed.sum(1).astype(np.int32)
    turns = np.zeros(weight.shape, np.int32)
    weights = np.zeros(weight.shape)
    for i, count in enumerate(counts):
        turns[i, :count] = np.flatnonzero(allowed[i])
        weights[i, :count] = weight[i, allowed[i]]
    return turns, counts, weights


def _footprints(halo: Bytes, radius: int, reach: int) -> tuple[Ints, Ints]:
    """Pixels, relative to a tail, that must be free for a chain to start there.

    NOTE: the public generator draws them one pixel too far down and right and cuts them at ``reach``. Both are kept:
    LRA's images were made so.
    """
    lists = []
    for stamp in halo:
        offsets = np.argwhere(stamp == 255) - radius + 1
        lists.append(offsets[(np.abs(offsets) <= reach).all(1)])
    counts = np.array([len(offsets) for offsets in lists], np.int32)
    foot = np.zeros((len(lists), max(1, int(counts.max())), 2), np.int32)
    for i, offsets in enumerate(lists):
        foot[i, : counts[i]] = offsets
    return foot, counts


def _seed_works(foot: Ints, mode: str) -> bool:
    """Whether the public generator can ever start a chain in a direction.

    Where no pixel of the footprint lies inside the image, OpenCV's dilation answers with a huge negative number, upon
    which the generator takes the whole image for full. That happens in a corner of every image unless the footprint
    reaches into all four quadrants.
    """
    if len(foot) == 0:
        return False
    if mode == "clean":
        return True
    dy, dx = foot[:, 0], foot[:, 1]
    return all(bool(((sy * dy >= 0) & (sx * dx >= 0)).any()) for sy in (-1, 1) for sx in (-1, 1))


def _first_starts(spec: PathfinderSpec, foot: Ints, counts: Ints, works: Bytes) -> tuple[Ints, Ints]:
    """Where path one's tail may be, by direction, and the directions for which there is any such pixel."""
    low, high = 2 * spec.seed_distance, spec.img_size - 1 - 2 * spec.seed_distance
    boxes = np.zeros((NUM_DEGREES, 4), np.int32)
    seeds = []
    for i in range(NUM_DEGREES):
        offsets = foot[i, : counts[i]]
        if not works[i]:
            continue
        (y0, x0), (y1, x1) = offsets.min(0), offsets.max(0)
        boxes[i] = low - y0, high - y1, low - x0, high - x1
        if boxes[i, 0] <= boxes[i, 1] and boxes[i, 2] <= boxes[i, 3]:
            seeds.append(i)
    if not seeds:
        raise ValueError(
            f"no direction leaves the first path room to start with {spec.mode=}, {spec.img_size=} and "
            f"{spec.seed_distance=}; lower seed_distance or take mode='clean'"
        )
    return boxes, np.array(seeds, np.int32)


def seed_angles() -> list[float]:
    """The 360 directions of first paddles, in radians."""
    return [math.radians(degree - NUM_DEGREES // 2) for degree in range(NUM_DEGREES)]


def polar(angle: float, distance: float) -> tuple[float, float]:
    """A move by ``distance`` towards ``angle``: (dy, dx)."""
    return distance * math.sin(angle), distance * math.cos(angle)


def circle_offsets(radius: int) -> Ints:
    """Distinct pixels (dy, dx) on a circle that is sampled once a pixel of its length, in row-major order: (K, 2)."""
    count = math.ceil(2 * math.pi * radius)
    found = {
        (math.floor(radius * math.sin(i / radius)), math.floor(radius * math.cos(i / radius))) for i in range(count)
    }
    return np.array(sorted(found), np.int32)


def disc(radius: int) -> NDArray[np.bool_]:
    """A filled disc: (2 radius + 1, 2 radius + 1)."""
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(x**2 + y**2 <= radius**2)


def reduce_lanczos(image: Bytes, size: int) -> Bytes:
    """A square picture at another size, by Pillow's integer Lanczos filter."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))


def draw_stamps(angles: list[float], length: int, thickness: float, margin: int) -> tuple[Bytes, Bytes]:
    """Ink and halo of a bar in each direction.

    Args:
        angles: D directions in radians.
        length: Length of the bar in pixels.
        thickness: Its thickness, a multiple of half a pixel.
        margin: Width of the halo around it.

    Returns:
        Two arrays (D, 2R + 1, 2R + 1) in 0..255, R = length + ceil(thickness) + margin; the bar starts at [R, R].
    """
    radius = length + math.ceil(thickness) + margin
    large, small = 2 * SUPERSAMPLING * radius + 1, 2 * radius + 1
    centre = SUPERSAMPLING * radius
    brush = disc(SUPERSAMPLING * margin)
    ink = np.zeros((len(angles), small, small), np.uint8)
    halo = np.zeros_like(ink)
    for i, angle in enumerate(angles):
        dy, dx = polar(angle, SUPERSAMPLING * length)
        canvas = Image.new("L", (large, large))
        line = [(centre, centre), (math.ceil(centre + dx), math.ceil(centre + dy))]
        ImageDraw.Draw(canvas).line(line, fill=255, width=round(SUPERSAMPLING * thickness))
        bar = np.asarray(canvas)
        ink[i] = reduce_lanczos(bar, small)
        halo[i] = reduce_lanczos(dilate(bar, brush), small)
    return ink, halo


def draw_dots(radius: float) -> Bytes:
    """The disc that marks an end, reduced from twice its size, at every position that matters.

    Near the border the filter has fewer pixels to average, so the dot looks a little different there.

    Returns:
        (2E + 1, 2E + 1, 2E + 1, 2E + 1) in 0..255: [i, j] is a picture of 2E + 1 pixels with the dot at (i, j); the
        one at [E, E] is far enough from every border.
    """
    edge = math.ceil(radius) + 6
    size = 2 * edge + 1
    grid = np.arange(SUPERSAMPLING * size)
    squared = (grid - SUPERSAMPLING * np.arange(size)[:, None]) ** 2  # (positions, large)
    dots = np.zeros((size, size, size, size), np.uint8)
    for i, j in np.ndindex(size, size):
        inside = squared[i][:, None] + squared[j] <= (SUPERSAMPLING * radius) ** 2
        dots[i, j] = reduce_lanczos(inside.astype(np.uint8) * 255, size)
    return dots


def dilate(image: Bytes, brush: NDArray[np.bool_]) -> Bytes:
    """Highest value under a brush around each pixel; outside the picture is black. image (…, height, width)."""
    reach = brush.shape[0] // 2
    height, width = image.shape[-2:]
    edges = [(0, 0)] * (image.ndim - 2) + [(reach, reach), (reach, reach)]
    padded = np.pad(image, edges)
    highest = np.zeros_like(image)
    for dy, dx in np.argwhere(brush):
        np.maximum(highest, padded[..., dy : dy + height, dx : dx + width], out=highest)
    return highest
