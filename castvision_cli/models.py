"""The models there are, and what each costs. ``castvision models``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from castvision_cli.arguments import new_parser
from castvision_cli.early.values import check_model_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.models.census import Census

_DESCRIPTION = """\
List registered models: input, tokens, parameters, operations, memory, and where trained weights come from.

All figures are computed by building each model without storage and running it once at its own size, for one image in
fp32; a second or more each. GFLOPs count matrix products, attention and convolutions, a multiply-add as two; memory is
that of the weights and of the most that stands beside them while predicting, caches and libraries apart.
"""

_EPILOG = """\
examples:
  %(prog)s
  %(prog)s '*dinov2*' '*siglip*' --pretrained
  %(prog)s 'vit_small*' --fast          timm's own ViTs, too

exit code: 0 done, 2 no model fits, or wrong arguments
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("castvision models", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("patterns", nargs="*", metavar="PATTERN", help="names, with * and ? (default: cast_vit_*)")
    add("--pretrained", action="store_true", help="only those with trained weights")
    add("--fast", action="store_true", help="leave out operations and memory, which take a run of each model")
    add("--json", action="store_true", help="as JSON, in whole numbers")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """List models.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        0 done, 2 no model fits.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if (told := _unknown(arguments.patterns)) is not None:
        print(f"{parser.prog}: error: {told}", file=sys.stderr)
        return 2
    # NOTE: imported here, so that --help answers at once.
    import timm

    import castvision  # noqa: F401 (registers the models)
    from castvision.models.census import census, weights_of
    from castvision.models.recipe import near_misses

    names: list[str] = []
    for pattern in arguments.patterns or ["cast_vit_*"]:
        found = timm.list_models(pattern)
        if not found:
            print(f"{parser.prog}: error: no model fits {pattern!r}{near_misses(pattern)}", file=sys.stderr)
            return 2
        names += [name for name in found if name not in names]
    if arguments.pretrained:
        names = [name for name in names if weights_of(timm.get_pretrained_cfg(name).to_dict()) is not None]
        if not names and not arguments.json:
            print(f"{parser.prog}: error: none of these models has trained weights", file=sys.stderr)
            return 2
    rows: list[Census] = []
    for name in names:
        try:
            rows.append(census(name, runs=not arguments.fast))
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            told = " ".join(str(error).split())[:120]
            print(f"{parser.prog}: left out {name}, which is no ViT of images: {told}", file=sys.stderr)
            continue
        if not arguments.json:
            print(_line(rows[-1], len(rows) == 1), flush=True)
    if arguments.json:
        import dataclasses

        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    return 0


def _unknown(patterns: Sequence[str]) -> str | None:
    """What is wrong with the first pattern without * and ? that is no model's name, without importing the models."""
    for pattern in filter(str.isidentifier, patterns):
        try:
            check_model_name(pattern)
        except ValueError as error:
            return str(error)
    return None


def _line(row: Census, is_first: bool) -> str:
    channels, height, width = row.input_size
    cells = [
        row.name,
        f"{channels} × {height} × {width}",
        f"{row.grid[0] * row.grid[1]:,}",
        f"{row.parameters / 1e6:.2f}",
        "" if row.gflops is None else f"{row.gflops:.2f}",
        "" if row.memory is None else f"{row.memory / 1e6:.0f}",
        row.weights or "-",
    ]
    head = ["model", "input", "tokens", "million parameters", "GFLOPs", "MB of memory", "weights"]
    widths = [38, 15, 7, 18, 9, 12, 0]
    lines = [head, cells] if is_first else [cells]
    return "\n".join(
        "  ".join(f"{cell:>{width}}" if 2 <= index < 6 else f"{cell:<{width}}" for index, (cell, width) in
                  enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    )  # fmt: skip
