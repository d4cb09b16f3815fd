"""Near and far put into a pretrained ViT, as files. ``castvision convert``."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from castvision_cli.arguments import add_output_arguments, natural, new_parser, positive
from castvision_cli.early.paths import check_given, check_model, check_output

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = """\
Put near and far in place of full attention into a ViT of timm's with its trained weights, for images of any size.

The weights stay as they are, under timm's names: timm loads the folder with full attention, castvision with near and
far and these options (castvision predict, embed, demo; load_model), and --init-from starts a training from it.
"""

_EPILOG = """\
examples:
  %(prog)s vit_small_patch14_dinov2.lvd142m --output dinov2
  %(prog)s vit_base_patch16_224 --weights model.safetensors --num-clusters 256 --output converted
  %(prog)s runs/flowers/best.ckpt --output flowers

exit code: 0 done, 1 the weights cannot be fetched, 2 wrong arguments, nothing written
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("castvision convert", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add(
        "source",
        metavar="MODEL",
        help="a name (castvision models 'vit_*' lists some), or a checkpoint with full attention",
    )
    add("--weights", type=Path, metavar="FILE", help="of the model of this name (default: timm fetches them)")
    add(
        "--format",
        choices=["hf", "safetensors"],
        default="hf",
        help="timm's folder, or its weights alone (default: hf)",
    )
    add_output_arguments(parser, "files")
    group = parser.add_argument_group("near and far (default: what follows the image, see docs/models.md)")
    group.add_argument("--window-size", type=positive, metavar="N", help="side of a window, in tokens")
    group.add_argument("--num-clusters", type=positive, metavar="M", help="content clusters")
    group.add_argument("--anchors", type=natural, metavar="R", help="tokens whose attention is exact; 0 = none")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        0 done, 1 the weights cannot be fetched, 2 wrong arguments (nothing was written).
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    named = {name: getattr(arguments, name) for name in ("window_size", "num_clusters", "anchors")}
    options = {name: value for name, value in named.items() if value is not None}
    try:
        if options and arguments.format == "safetensors":
            asked = ", ".join(f"--{name.replace('_', '-')}" for name in options)
            raise ValueError(f"{asked} belongs to --format hf: weights alone do not hold how near and far is put in")
        check_given(arguments.weights, "file of weights")
        check_output(arguments.output, is_open=arguments.overwrite)
        check_model(arguments.source)
        # NOTE: imported here, so that --help and what is wrong so far answer at once.
        from castvision.export.conversion import converted
        from castvision.export.timm_folder import CONFIG, WEIGHTS, write_folder
        from castvision.inference.files import OutputFolder

        recipe, model = converted(arguments.source, options, arguments.weights)
        output = OutputFolder(arguments.output, overwrite=arguments.overwrite)
        with tempfile.TemporaryDirectory() as folder:
            write_folder(model, recipe, Path(folder), recipe.to_dict())
            for name in (WEIGHTS,) if arguments.format == "safetensors" else (CONFIG, WEIGHTS):
                with output.draft(name) as draft:
                    shutil.copyfile(Path(folder) / name, draft)
    except ConnectionError as error:
        print(f"{parser.prog}: failed: {error}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    print(f"done; files in {output.path}")
    return 0
