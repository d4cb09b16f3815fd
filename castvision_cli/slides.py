"""What ``castvision predict`` and ``evaluate`` do with embeddings of slides in place of images."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from castvision_cli.arguments import resolve_device

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from rich.console import Console

    from castvision.data.datasets.slide_bags import SlideTable

_FOR_BOTH = {"model", "output", "overwrite", "device"}


def predict_slides(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Probabilities and attention of slides.

    Args:
        arguments: Of ``castvision predict``.
        parser: That made them.

    Returns:
        0 all done, 1 some slides failed, 130 interrupted.

    Raises:
        ValueError: An option of images, or anything that cannot be used.
    """
    from rich.console import Console

    from castvision.inference.files import OutputFolder, expand_patterns
    from castvision.inference.slides import SlidePredictor, SlideRun, name_bags
    from castvision_cli.images import each_image, print_end

    _refuse_others(arguments, parser, {"inputs", "overlay", "geojson"})
    slides = name_bags(expand_patterns(arguments.inputs))
    output = OutputFolder(arguments.output, overwrite=arguments.overwrite, protected=slides)
    predictor = SlidePredictor(arguments.model, resolve_device(arguments.device))
    run = SlideRun(predictor, output, picture=arguments.overlay, geojson=arguments.geojson)

    def describe(record: dict[str, Any]) -> str:
        best = record["prediction"]
        return f"{record['slide']}: {record['tiles']:,} tiles, {best} {record['probabilities'][best]:.3f}"

    console = Console()
    try:
        failed = each_image(slides, lambda path, name, report: describe(run.predict(path, name)), console)
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted; the same command with --overwrite begins anew", file=sys.stderr)
        return 130
    run.write_tables(failed)
    return print_end(console, len(slides), failed, f"done; results in {output.path}")


def evaluate_slides(
    arguments: argparse.Namespace,
    parser: argparse.ArgumentParser,
    show: Callable[[list[dict[str, Any]], dict[str, float], Console], None],
) -> int:
    """Metrics on slides with known labels.

    Args:
        arguments: Of ``castvision evaluate``.
        parser: That made them.
        show: Prints metrics of classes and of all.

    Returns:
        0 all done, 1 some slides failed.

    Raises:
        ValueError: An option of images, no list of labels, or anything that cannot be used.
    """
    from rich.console import Console

    from castvision.data.datasets.slide_bags import read_slide_table
    from castvision.inference.files import OutputFolder
    from castvision.inference.slides import SlideEvaluation, SlidePredictor
    from castvision_cli.images import each_image, print_end

    _refuse_others(arguments, parser, {"images", "labels"})
    if arguments.labels is None or arguments.images is None:
        raise ValueError(
            "expected --images DIR, the folder of embeddings (*.h5), and --labels LIST.csv (slide,label), "
            "for a model of slides; give both"
        )
    table = read_slide_table(arguments.labels, arguments.images)
    split, truth = _held_out(table)
    output = OutputFolder(arguments.output, overwrite=arguments.overwrite, protected=truth)
    evaluation = SlideEvaluation(SlidePredictor(arguments.model, resolve_device(arguments.device)), truth)
    console = Console()
    if split is not None:
        console.print(f"of {len(table.paths)} slides listed the {len(truth)} of the split {split}")
    names = {path: path.stem for path in truth}
    failed = each_image(names, lambda path, name, report: evaluation.measure(path), console)
    if evaluation.records:
        show(*evaluation.write(output, failed), console)
    return print_end(console, len(truth), failed, "measured")


def _held_out(table: SlideTable) -> tuple[str | None, dict[Path, str]]:
    """The label of each slide to measure by: all of a list without splits, else those of test, or of val.

    Raises:
        ValueError: Slides for training alone.
    """
    listed = dict(zip(table.paths, table.labels, strict=True))
    if table.splits is None:
        return None, listed
    for split in ("test", "val"):
        chosen = {path: listed[path] for path, own in zip(table.paths, table.splits, strict=True) if own == split}
        if chosen:
            return split, chosen
    raise ValueError("expected slides with the split test or val in --labels, got train alone; drop the column split")


def _refuse_others(arguments: argparse.Namespace, parser: argparse.ArgumentParser, allowed: set[str]) -> None:
    """Refuse options that say how images are read."""
    given = [name for name, value in vars(arguments).items() if value != parser.get_default(name)]
    wrong = [f"--{name.replace('_', '-')}" for name in given if name not in allowed | _FOR_BOTH]
    if wrong:
        raise ValueError(
            f"expected no {', '.join(wrong)} with embeddings of slides, which are read as they are; leave out"
        )
