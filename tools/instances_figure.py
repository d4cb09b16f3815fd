#!/usr/bin/env python
"""Draw an image and the objects in masks of objects beside it, each in a colour of its own, with white outlines.

A mask may be any that `castvision predict --instances` writes (instances/NAME.tif), or the true one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # works without an installation


def coloured(picture: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8: the picture, tinted; neighbours have different hues."""
    from castvision.visualization.pictures import cluster_colours

    colours = cluster_colours(int(objects.max()) + 1)[np.random.default_rng(0).permutation(int(objects.max()) + 1)]
    inside = objects > 0
    edge = np.zeros_like(inside)
    for axis in (0, 1):
        change = np.diff(objects, axis=axis) != 0
        edge[tuple(slice(0, size) for size in change.shape)] |= change
    drawn = picture.copy()
    drawn[inside] = (0.45 * picture[inside] + 0.55 * colours[objects[inside]]).astype(np.uint8)
    drawn[edge] = 255
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path, help="a .png")
    parser.add_argument("masks", nargs="+", metavar="TITLE=FILE", help="masks of objects of the image's size")
    parser.add_argument("--brightest", type=float, default=99, metavar="PERCENTILE", help="drawn white (default: 99)")
    arguments = parser.parse_args()
    from castvision.data import open_image, open_mask
    from castvision.visualization.plots import Panel, as_png, plot_rows

    with open_image(arguments.image) as reader:
        pixels = reader.read(0, 0, reader.height, reader.width)[..., 0].astype(np.float64)
    grey = (255 * np.clip(pixels / np.percentile(pixels, arguments.brightest), 0, 1)).astype(np.uint8)
    picture = np.repeat(grey[..., None], 3, axis=2)
    panels = [Panel(arguments.image.name, picture)]
    for word in arguments.masks:
        title, _, path = word.rpartition("=")
        with open_mask(path) as reader:
            objects = reader.read(0, 0, reader.height, reader.width)[..., 0].astype(np.int64)
        if objects.shape != grey.shape:
            parser.error(f"expected a mask of {grey.shape}, got {objects.shape}: {path}")
        panels.append(Panel(f"{title}\n{len(np.unique(objects[objects > 0]))} objects", coloured(picture, objects)))
    arguments.output.write_bytes(as_png(plot_rows([panels], "", [])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
