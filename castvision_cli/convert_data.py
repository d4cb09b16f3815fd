"""``castvision data convert``: what was annotated in other tools, as masks that train."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from castvision_cli.arguments import new_parser
from castvision_cli.early.light import without_models

if TYPE_CHECKING:
    import argparse
    from collections import Counter
    from collections.abc import Sequence

    from castvision.data.annotations import Conversion

_DESCRIPTION = """\
Draw what was annotated in LabelMe (its folder of JSON files), CVAT ("CVAT for images 1.1", an XML file) or Label Studio
("JSON") as masks of class numbers, with a list of images and masks and the names of the classes. COCO files need none
of this: CocoDataModule reads them. Images stay where they are, and nothing is overwritten.
"""

_EPILOG = """\
examples:
  castvision data convert photos --output data
  castvision data convert annotations.xml --images frames --output data --class-names background crack stain
  castvision train --config segmentation_folder --data.root data/images.csv --data.class_names "[background, crack]" \\
      --data.allow_outside_root true

writes: DIR/masks/NAME.png, DIR/images.csv (image, mask), DIR/classes.txt
exit code: 0 written, 1 failed while writing, 2 wrong arguments or annotations, nothing written
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("castvision data convert", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("source", type=Path, metavar="EXPORT", help="LabelMe's folder, CVAT's .xml or Label Studio's .json")
    add("--output", required=True, type=Path, metavar="DIR", help="where the masks go; must be new or empty")
    add(
        "--images", type=Path, metavar="DIR", help="where the images are (default: where the export says, or beside it)"
    )
    names = "in the order of the labels (default: background, then as the tool lists them, or by name)"
    add("--class-names", nargs="+", metavar="NAME", help=names)
    boxes = "rectangles are filled, or ignored in training as boxes around an object (default: paint)"
    add("--rectangles", choices=("paint", "ignore"), default="paint", help=boxes)
    rest = "what pixels without a shape are (default: background)"
    add("--unlabelled", choices=("background", "ignore"), default="background", help=rest)
    add("--copy-images", action="store_true", help="put the images into DIR/images, so that DIR moves as a whole")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert.

    Args:
        argv: Arguments after ``castvision data convert``; None = the process's.

    Returns:
        0 written, 1 failed while writing, 2 refused before anything was written; the reason is one line on the standard
        error stream.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        if not arguments.source.exists():
            raise FileNotFoundError(f"no such file or folder: {str(arguments.source)!r}; check the path")
        # NOTE: imported here: a wrong path should be said at once.
        with without_models():
            from castvision.data.annotations import convert_annotations

        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        done = convert_annotations(
            arguments.source,
            arguments.output,
            images=arguments.images,
            class_names=arguments.class_names,
            rectangles=arguments.rectangles,
            unlabelled=arguments.unlabelled,
            copy_images=arguments.copy_images,
        )
    except (ValueError, OSError, ImportError) as error:
        sys.stderr.write(f"{parser.prog}: error: {' '.join(str(error).split())}\n")
        return 1 if (arguments.output / "masks").exists() and not isinstance(error, FileExistsError) else 2
    sys.stdout.write(report(done, arguments.output))
    return 0


def report(done: Conversion, output: Path) -> str:
    """What was written, for people."""
    lines = [f"{done.images} masks in {output / 'masks'} ({done.empty} without a shape)"]
    lines += [f"  {name}: {count} shapes" for name, count in _in_order(done)]
    for counts, told in (
        (done.without_pixels, "dropped, no pixel of the image inside"),
        (done.hidden, "wholly under later shapes"),
        (done.left_out, "left out"),
    ):
        lines += [f"  {told}: {count} × {name}" for name, count in sorted(counts.items())]
    if done.rectangles and done.rectangles == sum(done.shapes.values()) and not done.shapes["ignored"]:
        lines.append(
            "  all shapes are rectangles, and all their pixels are of the class; if they are boxes around objects, "
            "convert again with --rectangles ignore"
        )
    names = f"--data.class_names '{json.dumps(done.class_names, ensure_ascii=False)}'"
    outside = " --data.allow_outside_root true" if done.names_outside else ""
    lines += [
        "train with:",
        f"  castvision train --config segmentation_folder --data.root {output / 'images.csv'} {names} "
        f"--model.num_classes {len(done.class_names)}{outside}",
    ]
    return "\n".join(lines) + "\n"


def _in_order(done: Conversion) -> list[tuple[str, int]]:
    counts: Counter[str] = done.shapes
    return [(name, counts[name]) for name in [*done.class_names, "ignored"] if counts[name]]
