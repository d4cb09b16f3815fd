"""Pictures of a paddle in every direction, drawn once: its ink, and the halo that keeps others away.

A direction ``t`` points to ``(sin t, cos t)`` in (y, x), y down. A stamp shows a bar that starts at the stamp's centre.
NOTE: the public generator rounds moves up, ``ceil(position + distance * sin(angle))``, in double precision. Where the
result is whole on paper the last bit decides: cos(-120 degrees) comes out a little above -1/2, sin(180 degrees) above 0
(which moves pixels near the top or left border only). LRA's images were made so; the same sums are formed here.

There are 360 + K of them: whole degrees for the first paddle of a chain, and for each of the K pixels on the circle on
which a chain continues, the direction back to the circle's centre.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from castvision.data.synthetic.pathfinder.spec import SUPERSAMPLING

NUM_DEGREES = 360
"""Stamps 0..359 belong to first paddles, at ``index - 180`` degrees; the rest to continuations."""

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]


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
    """The disc that marks an end, reduced from twice its size, at every place that matters.

    Near the border the filter has fewer pixels to average, so the dot looks a little different there.

    Returns:
        (2E + 1, 2E + 1, 2E + 1, 2E + 1) in 0..255: [i, j] is a picture of 2E + 1 pixels with the dot at (i, j); the
        one at [E, E] is far enough from every border.
    """
    edge = math.ceil(radius) + 6
    size = 2 * edge + 1
    grid = np.arange(SUPERSAMPLING * size)
    squared = (grid - SUPERSAMPLING * np.arange(size)[:, None]) ** 2  # (places, large)
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
