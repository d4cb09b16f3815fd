"""A checkpoint in the formats of others. ``castvision export``."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from castvision_cli.arguments import add_output_arguments, new_parser, positive
from castvision_cli.early.paths import check_given, check_model, check_output, check_sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.export.source import Source
    from castvision.inference.files import OutputFolder

_DESCRIPTION = """\
Write a trained model for others to use.

  hf     a folder in timm's layout with a model card from the run's figures: timm.create_model("local-dir:DIR"),
         transformers' TimmWrapper, castvision itself (not for segmentation, whose heads timm does not know)
  onnx   model.onnx for batches and images of any size, run and compared at five; castvision predict takes it
         without torch
  torch  model.pt2, by torch.export, likewise
"""

_EPILOG = """\
examples:
  %(prog)s runs/flowers/best.ckpt --format hf --output flowers --push-to-hub me/flowers
  %(prog)s runs/cracks/best.ckpt --format onnx --int8 --images test/images --output cracks_onnx

exit code: 0 done, 1 failed while exporting, 2 wrong arguments, nothing written
"""
ONNX, INT8, TORCH, CARD = "model.onnx", "model_int8.onnx", "model.pt2", "README.md"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("castvision export", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="of castvision train, such as runs/NAME/best.ckpt")
    add("--format", required=True, choices=["hf", "onnx", "torch"], help="what to write")
    add_output_arguments(parser, "files")
    add("--int8", action="store_true", help="onnx: also model_int8.onnx, and how far it agrees with model.onnx")
    add("--images", nargs="+", metavar="IMAGE", help="onnx: images to compare --int8 on (default: eight of noise)")
    add("--most-images", type=positive, default=100, metavar="N", help="the first N of them (default: 100)")
    add("--push-to-hub", metavar="USER/NAME", help="then add the files to this repository of the Hugging Face hub")
    add("--private", action="store_true", help="the repository, if it is made")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        0 done, 1 failed while exporting, 2 wrong arguments (nothing was written).
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        check_model(arguments.checkpoint)
        check_given(Path(arguments.checkpoint), "checkpoint")
        check_output(arguments.output, is_open=arguments.overwrite)
        if arguments.format != "onnx" and (arguments.int8 or arguments.images):
            raise ValueError(f"--int8 and --images belong to --format onnx, got --format {arguments.format}")
        if arguments.images and not arguments.int8:
            raise ValueError("--images are what --int8 is compared on; add --int8, or leave them out")
        if arguments.private and arguments.push_to_hub is None:
            raise ValueError("--private belongs to --push-to-hub; add it, or leave --private out")
        if arguments.images:
            check_sources(arguments.images)
        # NOTE: imported here, so that --help and what is wrong so far answer at once.
        from castvision.export import timm_folder
        from castvision.export.hub import check_repository
        from castvision.export.program import check_onnx_is_here, check_program
        from castvision.export.source import load_source
        from castvision.inference.files import OutputFolder, expand_patterns, find_images

        if arguments.push_to_hub is not None:
            check_repository(arguments.push_to_hub)
        if arguments.format == "onnx":
            check_onnx_is_here()
        images = list(find_images(expand_patterns(arguments.images))) if arguments.images else []
        images = images[: arguments.most_images]
        source = load_source(arguments.checkpoint)
        timm_folder.check_fits(source) if arguments.format == "hf" else check_program(source)
        output = OutputFolder(arguments.output, overwrite=arguments.overwrite, protected=[Path(arguments.checkpoint)])
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    try:
        _write(source, output, arguments, images)
        if arguments.push_to_hub is not None:
            from castvision.export.hub import push

            address = push(output.path, arguments.push_to_hub, private=arguments.private)
            print(f"pushed to {address}")
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        from castvision.errors import one_line

        print(f"{parser.prog}: failed: {one_line(error, 500)}", file=sys.stderr)
        return 1
    print(f"done; files in {output.path}")
    return 0


def _write(source: Source, output: OutputFolder, arguments: argparse.Namespace, images: list[Path]) -> None:
    from castvision.export.model_card import model_card

    title = arguments.push_to_hub or output.path.resolve().name
    told: list[str] = []
    if arguments.format == "hf":
        from castvision.export.timm_folder import CONFIG, WEIGHTS, write_folder

        with tempfile.TemporaryDirectory() as folder:
            write_folder(source.model, source.recipe, Path(folder), source.facts())
            for name in (CONFIG, WEIGHTS):
                with output.draft(name) as draft:
                    shutil.copyfile(Path(folder) / name, draft)
    else:
        from castvision.export.program import Program

        print("tracing the model; this takes a minute or more", flush=True)
        program = Program(source)
        name, runs = (ONNX, "onnxruntime") if arguments.format == "onnx" else (TORCH, "the program")
        with output.draft(name) as draft:
            difference = program.write_onnx(draft) if arguments.format == "onnx" else program.write_torch(draft)
        told.append(f"{name}: {runs} gives the model's outputs at five sizes, to {difference:.1g}")
        if arguments.int8:
            from castvision.export.int8 import write_int8

            told.append(f"{INT8}: {write_int8(program, output, ONNX, INT8, images)}")
        for line in told:
            print(line)
    output.write_text(CARD, model_card(source, title, arguments.format, told))
