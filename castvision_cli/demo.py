"""The demo: predictions and cluster maps of photographs as pictures. ``castvision demo`` and ``demo/image_demo.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from castvision_cli.arguments import (
    add_attention_argument,
    add_device_argument,
    add_output_arguments,
    check_device,
    new_parser,
    positive,
    resolve_device,
    share,
)
from castvision_cli.early.images import check_images, told_of
from castvision_cli.early.light import without_models
from castvision_cli.early.paths import check_model, check_output, check_sources

if TYPE_CHECKING:
    import argparse
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
  %(prog)s --web

--web: a page in the browser instead (castvision demo --web --help tells more)

exit code: 0 all images done, 1 some images could not be read (named at the end), 2 wrong arguments, nothing written
"""


def build_parser(prog: str = "castvision demo") -> argparse.ArgumentParser:
    """The demo's command line."""
    parser = new_parser(prog, _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        metavar="IMAGE_OR_FOLDER",
        help="images (PNG, JPEG, TIFF, WebP, BMP, GIF), folders of images",
    )
    add("--model", required=True, help="a model's name (untrained), a checkpoint, or a folder in timm's layout")
    add_attention_argument(parser)
    add_output_arguments(parser, "pictures")
    add(
        "--max-size",
        type=positive,
        metavar="PIXELS",
        help="longer side of the model's input; larger images are reduced (default: 64 patches, at most 1,024 pixels; "
        "a model trained on whole images: its training size)",
    )
    add(
        "--stretch",
        action="store_true",
        help="stretch each image's range (0.1 to 99.9 percent) before the model sees it",
    )
    add("--opacity", type=share, default=0.5, help="of the overlays, 0 to 1 (default: 0.5)")
    add("--limit", type=positive, metavar="N", help="only the first N images")
    add_device_argument(parser)
    add("--seed", type=int, default=0, help="weights of an untrained model (default: 0)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        0 all done, 1 some images were skipped, 2 wrong arguments (nothing was written).
    """
    given = list(sys.argv[1:] if argv is None else argv)
    if "--web" in given:
        from castvision_cli.web_demo import main as serve

        return serve([each for each in given if each != "--web"])
    script = Path(sys.argv[0]).name
    parser = build_parser(script if script == "image_demo.py" else "castvision demo")
    arguments = parser.parse_args(given)
    try:
        check_sources(arguments.images)
        check_model(arguments.model)
        check_output(arguments.output, is_open=arguments.overwrite)
        check_device(arguments.device)
        # NOTE: imported here, so that --help and what is wrong so far answer at once.
        with without_models():
            from castvision.inference.files import OutputFolder, find_images

        images = find_images(arguments.images, outside=arguments.output)
        output = OutputFolder(arguments.output, overwrite=arguments.overwrite, protected=images)
        images = dict(list(images.items())[: arguments.limit])
        check_images(images, told_of(arguments.model))
        device = resolve_device(arguments.device)
        from castvision.inference.predictor import load_model
        from castvision.inference.showing import UNTRAINED, Options, Showing

        how = {"seed": arguments.seed, "attention": arguments.attention}
        predictor = load_model(arguments.model, device=device, **how)
        options = Options(arguments.max_size, arguments.stretch, arguments.opacity, arguments.seed)
        showing = Showing(predictor, output, options)
    except (ValueError, TypeError, OSError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    from rich.console import Console
    from rich.markup import escape

    from castvision_cli.images import each_image, print_end

    console = Console()
    if not predictor.is_trained:
        console.print(f"[yellow]{escape(predictor.parts.name)}: {UNTRAINED}[/]")
    skipped = each_image(images, lambda path, name, report: showing.show(path, name), console)
    showing.finish(skipped)
    return print_end(console, len(images), skipped, f"shown; pictures in {output.path}", "skipped")
