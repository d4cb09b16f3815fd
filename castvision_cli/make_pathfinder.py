"""Write a Pathfinder data set in Long Range Arena's layout, with masks, in parallel, resumable.

    OUT/imgs/<batch>/sample_<i>.png     8-bit grey
    OUT/metadata/<batch>.npy            text, one image a line, LRA's eleven columns
    OUT/masks/<batch>.npz               semantic, instances, gap_free, ordinal, dots; one row an image
    OUT/manifest.json                   all parameters

A batch of 1,000 images is complete once its metadata exists: that file is written last, under its final name at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write, report; 0 done, 1 failed while writing, 2 refused."""
    args = build_parser().parse_args(argv)
    from rich.progress import Progress

    from castvision.data.synthetic.pathfinder import PathfinderSpec
    from castvision.data.synthetic.pathfinder.engine import check_room
    from castvision.data.synthetic.pathfinder.writing import write_pathfinder

    try:
        spec = PathfinderSpec.lra(args.img_size, args.contour_length, args.mode)
        check_room(spec)
        with Progress(transient=True) as progress:
            task = progress.add_task("images", total=args.num_images)
            write_pathfinder(
                args.out, spec, args.num_images, args.seed, args.workers, lambda count: progress.advance(task, count)
            )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"castvision make-pathfinder: error: {error}\n")
        return 2 if isinstance(error, (ValueError, FileExistsError)) else 1
    sys.stdout.write(f"{args.num_images} images in {args.out}\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="castvision make-pathfinder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; new, empty, or one to go on with")
    parser.add_argument("--img-size", type=int, default=32, help="height and width (default: 32)")
    parser.add_argument("--contour-length", type=int, default=14, help="paddles in a long path (default: 14)")
    parser.add_argument("--num-images", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--mode", choices=("lra", "clean"), default="lra", help="see PathfinderSpec (default: lra)")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another set (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    return parser
