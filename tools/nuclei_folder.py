#!/usr/bin/env python
"""Make of the nuclei that `tools/fetch_images.py nuclei` fetches what `castvision train --config instances` reads.

The image of 512 x 512 pixels is cut into three parts: its right half, cut into windows of 128 pixels that overlap by
a half, for training; a strip of 64 columns to choose the checkpoint by; and the left 192 columns, where most nuclei
touch, to measure on. Each part is written beside its mask of objects.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import tifffile

SIDE, TEST, VAL = 128, 192, 256


def parts(image: np.ndarray, objects: np.ndarray) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """Split, name, pixels and objects of each part."""
    found = [("test", "left", slice(None), slice(0, TEST)), ("val", "strip", slice(None), slice(TEST, VAL))]
    for y in range(0, image.shape[0] - SIDE + 1, SIDE // 2):
        for x in range(VAL, image.shape[1] - SIDE + 1, SIDE // 2):
            found.append(("train", f"{y}_{x}", slice(y, y + SIDE), slice(x, x + SIDE)))
    return [(split, name, image[rows, columns], objects[rows, columns]) for split, name, rows, columns in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with img2d.tif and mask2d.tif")
    parser.add_argument("output", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    try:
        image, objects = (tifffile.imread(arguments.source / f"{name}.tif") for name in ("img2d", "mask2d"))
    except OSError as error:
        print(f"nuclei_folder.py: {error}; fetch them with tools/fetch_images.py nuclei", file=sys.stderr)
        return 1
    for split, name, pixels, numbers in parts(image, objects):
        for kind, content in (("images", pixels), ("objects", numbers)):
            folder = arguments.output / split / kind
            folder.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / f"{name}.tif", content, photometric="minisblack", compression="zlib")
    return 0


if __name__ == "__main__":
    sys.exit(main())
