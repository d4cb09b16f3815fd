"""Masks, tables and polygons of images of any size. ``castvision predict``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision_cli.arguments import (
    add_attention_argument,
    add_bands_argument,
    add_cluster_argument,
    add_output_arguments,
    add_scale_argument,
    add_tile_arguments,
    check_device,
    fits_images,
    from_zero,
    new_parser,
    positive,
    resolve_device,
    share,
    tile_options,
)
from castvision_cli.early.images import (
    Told,
    areas_fit,
    check_images,
    check_of_pixels,
    check_tiles,
    scale_fits,
    told_of,
)
from castvision_cli.early.light import without_models
from castvision_cli.early.paths import check_cluster, check_given, check_model, check_output, check_sources
from castvision_cli.instance_options import (
    FILES,
    add_instance_arguments,
    check_instance_options,
    instances_asked_for,
    listed,
)
from castvision_cli.resuming import begin, open_output, settings_of_run
from castvision_cli.stopping import exit_code, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castvision.inference.files import OutputFolder
    from castvision.inference.onnx_model import OnnxPredictor
    from castvision.inference.prediction import Record
    from castvision.inference.predictor import Predictor

ONNX = ".onnx"

_DESCRIPTION = """\
Predict images of any size: photographs, GeoTIFFs, whole slides. Large ones are read and written tile by tile.

A segmentation model writes for each image masks/NAME.tif (tiled, with overviews and georeference; NAME.png for images
of at most 16 megapixels without georeference), whose values are the classes and, where there is no data, the largest
value, and overlays/NAME.png; on request polygons/NAME.geojson and probabilities/NAME.tif. A classification model gives
its most probable classes. For all: predictions.csv (classes with pixels, areas, probabilities) and summary.json.
With --instances also single objects: instances/NAME.tif (the number of each pixel's object, 32 bits, 0 = none), .json
(COCO, run lengths), .geojson (a feature for each) and .csv (class, area, perimeter, centroid and box, in pixels and on
the ground).
Embeddings of slides (*.h5 of castvision embed) and a model of slide labels give probabilities and attention/NAME.png,
with --geojson attention/NAME.geojson.
"""

_EPILOG = """\
examples:
  %(prog)s scan.tif --model runs/tissue/best.ckpt --output out --mpp 0.5
  %(prog)s slide.svs --model runs/nuclei/best.ckpt --output out --instances watershed --min-area 20
  %(prog)s photos/ 'more/*.jpg' --model runs/cracks/best.ckpt --output out --geojson

exit code: 0 all images done, 1 some images failed (named at the end), 2 wrong arguments, nothing written
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("castvision predict", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("inputs", nargs="+", metavar="INPUT", help="images, folders of images, patterns such as 'scans/*.tif'")
    add("--model", required=True, help="a checkpoint, a folder in timm's layout, or .onnx of castvision export")
    add_attention_argument(parser)
    add_output_arguments(parser)
    add_cluster_argument(parser)
    add("--resume", action="store_true", help="go on with a run that was interrupted, also within an image")
    add_tile_arguments(parser)
    group = parser.add_argument_group("what is predicted")
    add = group.add_argument
    add_scale_argument(group)
    add_bands_argument(group)
    add("--mask", type=Path, help="work only where this image is > 0; for several images a folder with the same names")
    add("--min-foreground", type=share, default=0.0, help="leave out tiles with a smaller share of mask (default: 0)")
    add("--skip-blank", type=from_zero, metavar="RANGE", help="leave out tiles that vary by no more (0: constant)")
    group = parser.add_argument_group("what is written")
    add = group.add_argument
    add("--overlay", action=argparse.BooleanOptionalAction, default=True, help="the picture with the mask laid over it")
    add("--geojson", action="store_true", help="polygons of all classes but a background")
    add("--min-area", type=positive, default=1, metavar="PIXELS", help="smallest polygon or object (default: 1)")
    add("--simplify", type=from_zero, default=0.0, metavar="PIXELS", help="tolerance of outlines (default: 0, exact)")
    add("--probabilities", action="store_true", help="probabilities of all classes as float32 TIFF (4 bytes each)")
    add("--top", type=positive, default=5, help="classes listed by a classification model (default: 5)")
    group = add_instance_arguments(parser)
    files = "of tiff, coco, geojson and csv (default: all)"
    group.add_argument("--instance-files", type=listed, metavar="KIND,…", help=files)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        0 all done, 1 some images failed, 2 wrong arguments (nothing was written), 130 interrupted, 143
        terminated.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        check_sources(arguments.inputs)
        check_model(arguments.model)
        check_output(arguments.output, is_open=arguments.overwrite or arguments.resume)
        check_given(arguments.mask, "mask or folder of masks")
        check_instance_options(arguments)
        _check_runtime(arguments)
        with without_models():
            from castvision.checkpoint_facts import is_slide_model
        if is_slide_model(arguments.model):
            from castvision_cli.slides import predict_slides

            return predict_slides(arguments, parser)
        settings = settings_of_run(arguments)
        facts = told_of(arguments.model)
        images, masks, output = _listed(arguments, settings, facts)
        device = "cpu" if _is_onnx(arguments) else resolve_device(arguments.device)
        # NOTE: imported here, so that --help and what is wrong so far answer at once.
        from castvision.inference.prediction import Options, PredictionRun

        check_cluster(arguments.cluster)
        predictor = _load(arguments, device)
        if facts is None:
            _check_told(arguments, predictor, images)
        tiles = tile_options(arguments, predictor)
        fits = fits_images(arguments, predictor)
        same = "mpp bands min_foreground overlay geojson min_area simplify probabilities top resume".split()
        chosen = {name: getattr(arguments, name) for name in same}
        chosen |= {"instances": instances_asked_for(arguments, min_area=arguments.min_area)}
        chosen |= {"instance_files": arguments.instance_files or FILES}
        options = Options(tiles=tiles, fits=fits, blank=arguments.skip_blank, **chosen)
        run = PredictionRun(predictor, output, options)
        begin(output, settings, images, is_resumed=arguments.resume)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    from rich.console import Console

    from castvision_cli.images import each_image, print_end

    console = Console()
    try:
        if arguments.cluster is not None:
            from castvision_cli import clustered

            work = clustered.Prediction(
                arguments.model, arguments.attention, str(predictor.device), output.path.resolve(), options
            )
            failed = clustered.each_image_on(
                arguments.cluster, work, images, masks, lambda path, name: describe(run.take(path, name)), console
            )
        else:
            failed = each_image(
                images,
                lambda path, name, report: describe(run.predict(path, name, masks.get(path), report)),
                console,
            )
    except OSError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(f"{parser.prog}: {told(stop)}; the same command with --resume goes on", file=sys.stderr)
        return exit_code(stop)
    run.write_tables(failed)
    return print_end(console, len(images), failed, f"done; results in {output.path}")


def _listed(
    arguments: argparse.Namespace, settings: dict[str, Any], facts: Told | None
) -> tuple[dict[Path, str], dict[Path, Path], OutputFolder]:
    """Images with their names, masks and the folder for results, checked as far as it goes without the model.

    Raises:
        ValueError: What is wrong; OSError likewise.
    """
    with without_models():
        from castvision.inference.files import ALL_SUFFIXES, expand_patterns, find_images, match_masks
        from castvision.inference.suited import check_predicts
    if facts is not None:
        check_predicts(facts.name, facts.task)
    check_of_pixels(arguments, facts)
    check_tiles(arguments, facts)
    images = find_images(expand_patterns(arguments.inputs), outside=arguments.output, suffixes=ALL_SUFFIXES)
    output = open_output(arguments, settings, images)
    masks = match_masks(arguments.mask, images)
    check_images(images, facts, arguments.bands, areas_fit(masks, scale_fits(facts, arguments.mpp)))
    return images, masks, output


def _check_told(arguments: argparse.Namespace, predictor: Predictor | OnnxPredictor, images: dict[Path, str]) -> None:
    """What `_listed` checks, of a model that says only once it is loaded what it is, such as an export.

    Raises:
        ValueError: Options or images that it does not take.
    """
    parts = predictor.parts
    told = Told(parts.name, parts.task, parts.class_names, parts.input)
    check_of_pixels(arguments, told)
    check_images(images, told, arguments.bands)


def _is_onnx(arguments: argparse.Namespace) -> bool:
    return Path(arguments.model).suffix == ONNX


def _check_runtime(arguments: argparse.Namespace) -> None:
    if _is_onnx(arguments):
        check_onnx_options(arguments)
    else:
        check_device(arguments.device)


def check_onnx_options(arguments: argparse.Namespace) -> None:
    """Refuse what a model in ONNX has no part in, and see to it that torch is not imported.

    Raises:
        ValueError: It names the option.
    """
    asked = [
        name
        for name, is_asked in (
            ("--attention", arguments.attention is not None),
            ("--cluster", arguments.cluster is not None),
            (f"--precision {arguments.precision}", arguments.precision != "fp32"),
            (f"--device {arguments.device}", arguments.device not in ("auto", "cpu")),
        )
        if is_asked
    ]
    if asked:
        raise ValueError(
            f"a model in ONNX is run as it was exported, on the CPU, got {', '.join(asked)}; leave it out, or give the "
            "checkpoint"
        )
    os.environ["CASTVISION_WITHOUT_TORCH"] = "1"


def _load(arguments: argparse.Namespace, device: Any) -> Predictor | OnnxPredictor:
    if _is_onnx(arguments):
        from castvision.inference.onnx_model import OnnxPredictor

        return OnnxPredictor(Path(arguments.model))
    from castvision.inference.predictor import load_model

    return load_model(arguments.model, device=device, attention=arguments.attention)


def describe(record: Record) -> str:
    """What is said of a finished image on one line."""
    from castvision_cli.images import remarks

    height, width = record["size"]
    line = f"{record['image']}: {height} × {width}"
    if "tiles_run" not in record:
        best = record["classes"][0]
        return f"{line}, {best['name']} {best['probability']:.3f}{remarks(record)}"
    skipped = f" ({record['tiles_skipped']:,} skipped)" if record["tiles_skipped"] else ""
    seam = record["seam"]
    agreement = "" if seam is None else f", tiles disagree on {seam['labels']:.4f} of overlapping pixels"
    speed = f"{record['seconds']:.1f} s, {record['megapixels_per_second']:.2f} megapixels/s"
    if "instances" in record:
        line = f"{line}, {record['instances']['count']:,} objects"
    return f"{line}, {record['tiles_run']:,} tiles{skipped}, {speed}{agreement}{remarks(record)}"
