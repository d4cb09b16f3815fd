"""The demo: predictions and cluster maps of photographs as pictures. ``castvision demo`` and ``demo/image_demo.py``."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Show what a model does with images: for each one its prediction and, layer by layer, its windows and clusters.

Written for each image, under OUTPUT/NAME/: clusters.png (one overlay per layer: clusters tinted, white lines between
windows), layer_*.png (each overlay alone), prediction.png (a trained model: the most probable classes, or the mask laid
over the image) and mask.png (segmentation: the class of each pixel, at the image's size). For all: contact_sheet.png
and summary.json. An untrained model shows its windows and clusters only.
"""

_EPILOG = """\
examples:
  %(prog)s photo.jpg --model cast_vit_tiny_patch16_224 --output out
  %(prog)s photos/ --model runs/quickstart/best.ckpt --output out --limit 12

exit code: 0 all images done, 1 some images could not be read (named at the end), 2 wrong arguments, nothing written
"""


def build_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The demo's command line."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="images (PNG, JPEG, TIFF, WebP, BMP, GIF), folders of images",
    )
    add("--model", required=True, help="a model's name (untrained), a checkpoint, or a folder in timm's layout")
    add("--output", required=True, type=Path, metavar="DIR", help="where the pictures go; must be new or empty")
    add("--overwrite", action="store_true", help="allow an output folder that holds files; same names are replaced")
    add(
        "--max-size",
        type=_positive,
        metavar="PIXELS",
        help="longer side of the model's input; larger images are reduced (default: 64 patches, at most 1,024 pixels; "
        "a trained classifier: its training size)",
    )
    add(
        "--stretch",
        action="store_true",
        help="stretch each image's range (0.1 to 99.9 percent) before the model sees it",
    )
    add("--opacity", type=_share, default=0.5, help="of the overlays, 0 to 1 (default: 0.5)")
    add("--limit", type=_positive, metavar="N", help="only the first N images")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")
    add("--seed", type=int, default=0, help="weights of an untrained model (default: 0)")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text}")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number in 0..1, got {text}")
    return value


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Run the demo.

    Args:
        argv: Arguments; None = the process's.
        prog: Name shown in messages; None = the command that runs.

    Returns:
        0 all done, 1 some images were skipped, 2 wrong arguments (nothing was written).
    """
    if prog is None:
        prog = "image_demo.py" if Path(sys.argv[0]).name == "image_demo.py" else "castvision demo"
    parser = build_parser(prog)
    arguments = parser.parse_args(argv)
    # NOTE: imported here, so that --help and mistyped options answer at once.
    from castvision.inference.files import OutputFolder, find_images

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damaged files are reported once, by us
    try:
        images = find_images(arguments.images, outside=arguments.output)
        output = OutputFolder(arguments.output, overwrite=arguments.overwrite, protected=images)
        images = dict(list(images.items())[: arguments.limit])
        from castvision.inference.predictor import load_model
        from castvision.inference.showing import Settings, resolve_device, show_images

        predictor = load_model(arguments.model, device=resolve_device(arguments.device), seed=arguments.seed)
        settings = Settings(arguments.max_size, arguments.stretch, arguments.opacity, arguments.seed)
        settings.check(predictor)
    except (ValueError, TypeError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)  # a command's only way to speak
        return 2
    return show_images(images, predictor, output, settings)


if __name__ == "__main__":
    sys.exit(main())
