"""Figures of a trained model on images with known answers. ``castvision evaluate``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from castvision_cli.predict import BIG_SUFFIXES, add_tile_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Measure a trained model on images whose answers are known: images and masks of the same names (segmentation), or one
folder of images for each class (classification).

Written: metrics.json (figures of the whole data set, of each class and of each image), confusion.png and worst.png
(the 20 images it does worst on). A segmentation's figures are counted over all pixels of all images; 255 in a mask is
ignored.
"""

_EPILOG = """\
examples:
  %(prog)s --model runs/tissue/best.ckpt --images test/images --masks test/masks --output out
  %(prog)s --model runs/flowers/best.ckpt --images test --output out

exit code: 0 all images measured, 1 some could not be (named at the end), 2 wrong arguments, nothing written
"""


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", required=True, help="a checkpoint, or a folder in timm's layout")
    add(
        "--images",
        required=True,
        type=Path,
        metavar="DIR",
        help="images; for classification in a folder for each class",
    )
    add("--masks", type=Path, metavar="DIR", help="the class of each pixel, under the images' names")
    add("--output", required=True, type=Path, metavar="DIR", help="where the results go; must be new or empty")
    add("--overwrite", action="store_true", help="allow an output folder that holds files; same names are replaced")
    add_tile_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Evaluate.

    Args:
        argv: Arguments; None = the process's.
        prog: Name shown in messages; None = the command that runs.

    Returns:
        0 all done, 1 some images failed, 2 wrong arguments (nothing was written).
    """
    if prog is None:
        prog = "evaluate.py" if Path(sys.argv[0]).name == "evaluate.py" else "castvision evaluate"
    parser = build_parser(prog)
    arguments = parser.parse_args(argv)
    # NOTE: imported here, so that --help and mistyped options answer at once.
    from castvision.inference.files import SUFFIXES, OutputFolder, find_images, match_masks

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damaged files are reported once, by us
    try:
        images = find_images([arguments.images], outside=arguments.output, suffixes=SUFFIXES | BIG_SUFFIXES)
        masks = match_masks(arguments.masks, images)
        output = OutputFolder(arguments.output, overwrite=arguments.overwrite, protected=[*images, *masks.values()])
        from castvision.inference.evaluation import evaluate_images
        from castvision.inference.prediction_options import tile_options
        from castvision.inference.predictor import load_model
        from castvision.inference.showing import resolve_device

        predictor = load_model(arguments.model, device=resolve_device(arguments.device))
        options = tile_options(arguments, predictor)
        return evaluate_images(images, masks, predictor, output, options)
    except (ValueError, TypeError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # a command's only way to speak
        return 2


if __name__ == "__main__":
    sys.exit(main())
