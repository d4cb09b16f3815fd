"""Metrics of a trained model on images with known answers. ``castvision evaluate``."""

from __future__ import annotations

import sys
from dataclasses import fields
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
    new_parser,
    positive,
    resolve_device,
    tile_options,
)
from castvision_cli.early.images import check_images, check_of_pixels, check_tiles, masks_fit, scale_fits, told_of
from castvision_cli.early.light import without_models
from castvision_cli.early.paths import check_cluster, check_given, check_model, check_output, check_sources
from castvision_cli.instance_options import add_instance_arguments, check_instance_options, instances_asked_for

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from rich.console import Console

    from castvision.inference.evaluation import Evaluation
    from castvision.inference.instances.finding import InstanceOptions
    from castvision.inference.predictor import Predictor
    from castvision_cli.early.images import Told

_DESCRIPTION = """\
Measure a trained model on images whose answers are known: images and masks of the same names, or polygons and points
on the ground (segmentation), or one folder of images for each class (classification), or a list of images and their
labels (several labels for an image), or a folder of slides' embeddings (--images) and a list of their labels (--labels,
slide,label).

Written: metrics.json (metrics of the whole data set, of each class and of each image), worst.png (the 20 images it does
worst on) and confusion.png (not for several labels). A segmentation's metrics are counted over all images' pixels.
Labels in masks mean what they meant in training, or what --label-map says; unless one of both says otherwise, 255 is
ignored.
"""

_COLUMNS = 6
"""Of a table: as many as 80 characters show whole."""
_LABELS = "{0: 0, 255: 1}"
_VECTOR = "{path: labels.geojson, attribute: landuse}"
_EPILOG = """\
examples:
  %(prog)s --model runs/tissue/best.ckpt --images test/images --masks test/masks --output out
  %(prog)s --model runs/land/best.ckpt --images tiles --vector '{path: land.geojson, attribute: use}' --output out
  %(prog)s --model runs/nuclei/best.ckpt --images test/images --instance-masks test/objects --instances watershed \\
      --output out
  %(prog)s --model runs/flowers/best.ckpt --images test --output out
  %(prog)s --model runs/scenes/best.ckpt --labels test.csv --output out
  %(prog)s --model runs/slide_labels/best.ckpt --images tiles --labels test.csv --output out

exit code: 0 all images measured, 1 some could not be (named at the end), 2 wrong arguments, nothing written
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("castvision evaluate", _DESCRIPTION, _EPILOG)
    add = parser.add_argument
    add("--model", required=True, help="a checkpoint, or a folder in timm's layout")
    add(
        "--images",
        type=Path,
        metavar="DIR",
        help="images; for classification in a folder for each class",
    )
    add("--masks", type=Path, metavar="DIR", help="the class of each pixel, under the images' names")
    add(
        "--label-map",
        metavar="MAP",
        help="what the masks' labels mean, such as '{0: 0, 255: house}' (default: what they meant in training)",
    )
    add(
        "--vector",
        metavar="MAP",
        help="polygons and points in place of masks, as in a configuration of windows: '{path: labels.geojson, "
        "attribute: landuse}', and if need be classes, unlabelled, point_radius, crs and layer",
    )
    add(
        "--instance-masks",
        type=Path,
        metavar="DIR",
        help="the number of each pixel's object, 0 = none, under the images' names: measures panoptic quality of the "
        "objects that --instances finds; for a model of one class beside a background, no --masks are needed",
    )
    add("--labels", type=Path, metavar="LIST.csv", help="images, or slides, and their labels")
    add("--allow-outside-root", action="store_true", help="let the list name files outside its folder; if you trust it")
    add_bands_argument(parser)
    add_attention_argument(parser)
    add_output_arguments(parser)
    add_cluster_argument(parser)
    add_scale_argument(parser)
    add_tile_arguments(parser)
    group = add_instance_arguments(parser)
    group.add_argument("--min-area", type=positive, default=1, metavar="PIXELS", help="smallest object (default: 1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        0 all done, 1 some images failed, 2 wrong arguments (nothing was written).
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    try:
        label_map, vector = _checked(arguments)
        check_device(arguments.device)
        with without_models():
            from castvision.checkpoint_facts import is_slide_model
        if is_slide_model(arguments.model):
            from castvision_cli.slides import evaluate_slides

            return evaluate_slides(arguments, parser, _print_metrics)
        _check_contents(arguments, told_of(arguments.model), label_map)
        device = resolve_device(arguments.device)
        # NOTE: imported here, so that --help and what is wrong so far answer at once.
        from castvision.data.datasets.multilabel import read_label_table
        from castvision.inference.files import ALL_SUFFIXES, OutputFolder, find_images, match_masks
        from castvision.inference.predictor import load_model

        check_cluster(arguments.cluster)
        predictor = load_model(arguments.model, device=device, attention=arguments.attention)
        check_of_pixels(arguments, predictor.parts)  # of a folder in timm's layout the task is known only now
        trusted = arguments.allow_outside_root
        table = None
        if arguments.labels is not None:
            table = read_label_table(arguments.labels, predictor.class_names, allow_outside_root=trusted)
        sources = [arguments.images] if table is None else table.images
        images = find_images(sources, outside=arguments.output, suffixes=ALL_SUFFIXES)
        masks: dict[Path, Any] = {**match_masks(arguments.masks, images)}
        truth = [*masks.values()]
        if vector is not None:
            masks, truth = _drawn(vector, images, predictor.class_names), [Path(str(vector["path"]))]
        objects = instances_asked_for(arguments, min_area=arguments.min_area)
        references = match_masks(arguments.instance_masks, images)
        if objects is not None and not masks:
            masks = _numbered(references, predictor, objects)
        truth += [*references.values()]
        output = OutputFolder(arguments.output, overwrite=arguments.overwrite, protected=[*images, *truth])
        from rich.console import Console

        from castvision.inference.evaluation import Evaluation
        from castvision_cli.images import each_image, print_end

        how: dict[str, Any] = {"label_map": label_map, "table": table, "mpp": arguments.mpp, "bands": arguments.bands}
        how |= {"instances": objects, "references": references}
        how |= {"tiles": tile_options(arguments, predictor), "fits": fits_images(arguments, predictor)}
        evaluation = Evaluation(predictor, images, masks, **how)
        console = Console()
        if arguments.cluster is None:
            failed = each_image(images, lambda path, name, report: evaluation.measure(path, report), console)
        else:
            failed = _on_cluster(arguments, evaluation, {"images": images, "masks": masks, **how}, console)
        if evaluation.tally.records:
            _print_metrics(*evaluation.write(output, failed), console)
        return print_end(console, len(images), failed, "measured")
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2


def _checked(arguments: argparse.Namespace) -> tuple[dict[Any, Any] | None, dict[Any, Any] | None]:
    """``--label-map`` and ``--vector``; all is checked that can be without the library.

    Raises:
        ValueError: What is wrong; OSError likewise.
    """
    label_map = None if arguments.label_map is None else _parse_map(arguments.label_map, "--label-map", _LABELS)
    vector = None if arguments.vector is None else _parse_map(arguments.vector, "--vector", _VECTOR)
    if vector is not None and (label_map is not None or arguments.masks is not None):
        raise ValueError("expected --vector without --masks and --label-map: its classes say what labels mean")
    if arguments.images is None and arguments.labels is None:
        raise ValueError("expected --images, or --labels, whose list names the images; got neither")
    check_sources([arguments.images or arguments.labels])
    check_model(arguments.model)
    check_output(arguments.output, is_open=arguments.overwrite)
    check_given(arguments.masks, "mask or folder of masks")
    check_given(arguments.instance_masks, "mask or folder of masks")
    check_instance_options(arguments)
    if (arguments.instances is None) != (arguments.instance_masks is None):
        raise ValueError("expected --instances and --instance-masks together, got one of them; give both, or none")
    if vector is not None:
        check_given(Path(str(vector.get("path", ""))), "file of labels")
    return label_map, vector


def _check_contents(arguments: argparse.Namespace, facts: Told | None, label_map: dict[Any, Any] | None) -> None:
    """Refuse what the evaluation would refuse once the model is loaded: answers that are not the model's.

    Raises:
        ValueError: What is wrong; OSError likewise.
    """
    if arguments.images is not None and arguments.labels is not None:
        raise ValueError("expected --images, or --labels, whose list names the images; give one of both")
    check_of_pixels(arguments, facts)
    check_tiles(arguments, facts)
    if facts is None:
        return
    with without_models():
        from castvision.data.datasets.multilabel import read_label_table
        from castvision.inference.files import ALL_SUFFIXES, OutputFolder, find_images, match_masks
        from castvision.inference.suited import check_measurable
        from castvision.inference.truth import check_two_classes, folders_as_classes, meaning_of_labels

    has = {"has_table": arguments.labels is not None, "has_label_map": label_map is not None}
    drawn = [arguments.masks, arguments.vector, arguments.instance_masks]
    check_measurable(facts.name, facts.task, has_masks=any(each is not None for each in drawn), **has)
    table = None
    if arguments.labels is not None:
        trusted = arguments.allow_outside_root
        table = read_label_table(arguments.labels, facts.class_names, allow_outside_root=trusted)
    sources = [arguments.images] if table is None else table.images
    images = find_images(sources, outside=arguments.output, suffixes=ALL_SUFFIXES)
    masks = match_masks(arguments.masks, images)
    references = match_masks(arguments.instance_masks, images)
    truth = [*masks.values(), *references.values()]
    OutputFolder(arguments.output, overwrite=arguments.overwrite, protected=[*images, *truth])
    look = scale_fits(facts, arguments.mpp)
    if facts.task == "classification":
        folders_as_classes(images, facts.class_names)
    elif masks:
        labels = meaning_of_labels(masks.values(), facts.class_names, label_map, facts.label_map)
        check_two_classes(masks.values(), labels)
        look = masks_fit(masks, labels, facts, arguments.mpp)
    check_images(images, facts, arguments.bands, look)


def _numbered(references: dict[Path, Path], predictor: Predictor, how: InstanceOptions) -> dict[Path, Any]:
    """Masks of classes from masks of objects.

    Raises:
        ValueError: Several classes: which one an object has is not known.
    """
    from castvision.inference.instances.references import NumberedMask

    names = predictor.class_names
    things = how.classes(names) if predictor.parts.task == "segmentation" else []
    if len(names) != 2 or len(things) != 1:
        raise ValueError(
            f"expected --masks beside --instance-masks for a model of the classes {', '.join(names[:8])}: which of "
            "them an object has is not known"
        )
    return {image: NumberedMask(path, 1 - things[0], things[0]) for image, path in references.items()}


def _on_cluster(
    arguments: argparse.Namespace, evaluation: Evaluation, how: dict[str, Any], console: Console
) -> list[dict[str, str]]:
    """Measure all images in other processes; ``how``: arguments of the evaluation, without the predictor."""
    from castvision_cli import clustered

    device = str(evaluation.predictor.device)
    work = clustered.Measurement(arguments.model, arguments.attention, device, how)
    return clustered.measure_on(arguments.cluster, work, evaluation, how["images"], console)


def _parse_map(text: str, option: str, example: str) -> dict[Any, Any]:
    """A map as it stands in a configuration.

    Raises:
        ValueError: No map.
    """
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"expected {option} such as '{example}', got {text!r}") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected {option} such as '{example}', got {text!r}")
    return content


def _drawn(vector: dict[Any, Any], images: dict[Path, str], class_names: Sequence[str]) -> dict[Path, Any]:
    """The mask of each image from polygons and points."""
    from castvision.data.datasets.vector_labels import VectorLabels

    known = [part.name for part in fields(VectorLabels)]
    if not {"path", "attribute"} <= set(vector) <= set(known):
        raise ValueError(
            f"expected path and attribute in --vector and, if need be, {', '.join(known[2:])}, got {vector}"
        )
    labels = VectorLabels(**vector)
    features, crs = labels.read(Path())
    return dict(zip(images, labels.masks(features, crs, list(images), class_names), strict=True))


def _print_metrics(rows: list[dict[str, Any]], totals: dict[str, float], console: Console) -> None:
    from rich.markup import escape
    from rich.table import Table

    def text(value: float | int | None) -> str:
        if value is None:
            return "–"
        return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"

    columns = [key for key in rows[0] if key != "name" and any(row[key] is not None for row in rows)]
    for start in range(0, len(columns), _COLUMNS):
        shown = columns[start : start + _COLUMNS]
        table = Table("class")
        for column in shown:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(escape(str(row["name"])), *(text(row[column]) for column in shown))
        console.print(table)
    overall = {name: value for name, value in totals.items() if not name.startswith(("iou_", "acc_", "ap_", "f1_"))}
    console.print(", ".join(f"{name} {value:.4g}" for name, value in overall.items()), soft_wrap=True)
