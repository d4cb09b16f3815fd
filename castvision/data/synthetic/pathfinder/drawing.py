"""From a table of paddles to pixels: the image, and areas of ink for masks."""

from __future__ import annotations

import numpy as np

from castvision.data.synthetic.pathfinder.chains import SNAKE, STAMP, TIP_X, TIP_Y, Work
from castvision.data.synthetic.pathfinder.compiled import kernel
from castvision.data.synthetic.pathfinder.tables import Tables


@kernel
def stamp_highest(canvas: np.ndarray, stamp: np.ndarray, top: int, left: int) -> None:
    """Draw a stamp whose first pixel comes to (top, left); where something is, the brighter stays."""
    size = canvas.shape[0]
    for i in range(max(0, -top), min(stamp.shape[0], size - top)):
        for j in range(max(0, -left), min(stamp.shape[1], size - left)):
            canvas[top + i, left + j] = max(canvas[top + i, left + j], stamp[i, j])


@kernel
def place_of(position: int, edge: int, size: int) -> int:
    """Where a dot lies in its picture of ``2 edge + 1`` pixels: as far from the image's border, up to ``edge``."""
    return min(position, edge) + max(0, position - (size - 1 - edge))


@kernel
def draw_image(tables: Tables, work: Work, num_paddles: int, dots: np.ndarray, image: np.ndarray) -> None:
    """Draw paddles and dots, each kind with its contrast, and stretch the result to 0..255."""
    layers = work.layers
    layers.fill(0)
    for row in range(num_paddles):
        layer = 0 if work.paddles[row, SNAKE] < 2 else 1
        ink = tables.ink[work.paddles[row, STAMP]]
        top, left = work.paddles[row, TIP_Y] - tables.radius, work.paddles[row, TIP_X] - tables.radius
        stamp_highest(layers[layer], ink, top, left)
    edge = tables.dots.shape[0] // 2
    for i in range(len(dots)):
        y, x = place_of(dots[i, 0], edge, tables.size), place_of(dots[i, 1], edge, tables.size)
        stamp_highest(layers[2], tables.dots[y, x], dots[i, 0] - y, dots[i, 1] - x)
    highest = 0.0
    for i in range(3):
        for y in range(tables.size):
            for x in range(tables.size):
                highest = max(highest, tables.brightness[i, layers[i, y, x]])
    levels = work.levels
    scale = 255.0 / highest
    for i in range(3):
        for value in range(256):
            levels[i, value] = np.uint8(min(255.0, tables.brightness[i, value] * scale) + 0.5)
    for y in range(tables.size):
        for x in range(tables.size):
            path, distractor, dot = levels[0, layers[0, y, x]], levels[1, layers[1, y, x]], levels[2, layers[2, y, x]]
            image[y, x] = max(path, distractor, dot)


@kernel
def paint_ink(ink: np.ndarray, paddles: np.ndarray, row: int, area: tuple[int, float], canvas: np.ndarray) -> None:
    """Set the pixels of a paddle whose ink is above ``area[0]`` to ``area[1]``."""
    size = canvas.shape[0]
    radius = ink.shape[1] // 2
    top, left = paddles[row, TIP_Y] - radius, paddles[row, TIP_X] - radius
    stamp = ink[paddles[row, STAMP]]
    for i in range(max(0, -top), min(2 * radius + 1, size - top)):
        for j in range(max(0, -left), min(2 * radius + 1, size - left)):
            if stamp[i, j] > area[0]:
                canvas[top + i, left + j] = area[1]


@kernel
def paint_segment(canvas: np.ndarray, start: tuple[int, int], end: tuple[int, int], half: float, value: int) -> None:
    """Set the pixels within ``half`` of the segment between two pixels."""
    size = canvas.shape[0]
    reach = int(np.ceil(half))
    dy, dx = end[0] - start[0], end[1] - start[1]
    length = max(1, dy * dy + dx * dx)
    for y in range(max(0, min(start[0], end[0]) - reach), min(size, max(start[0], end[0]) + reach + 1)):
        for x in range(max(0, min(start[1], end[1]) - reach), min(size, max(start[1], end[1]) + reach + 1)):
            along = min(1.0, max(0.0, ((y - start[0]) * dy + (x - start[1]) * dx) / length))
            off_y, off_x = y - start[0] - along * dy, x - start[1] - along * dx
            if off_y * off_y + off_x * off_x <= half * half + 1e-9:
                canvas[y, x] = value
