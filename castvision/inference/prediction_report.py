"""What ``castvision predict`` says: progress, a line for each image, the tables."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import castvision

if TYPE_CHECKING:
    from rich.console import Console

    from castvision.inference.files import OutputFolder
    from castvision.inference.predictor import Predictor

Record = dict[str, Any]


def make_progress(console: Console) -> Progress:
    """A bar for the images and one for the tiles of the image at work; nothing where there is no terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def describe(record: Record) -> str:
    """What is said of a finished image on one line."""
    height, width = record["size"]
    line = f"{record['image']}: {height} × {width}"
    if "tiles_run" not in record:
        best = record["classes"][0]
        return f"{line}, {best['name']} {best['probability']:.1%}"
    skipped = f" ({record['tiles_skipped']:,} skipped)" if record["tiles_skipped"] else ""
    seam = record["seam"]
    agreement = "" if seam is None else f", tiles disagree on {seam['labels']:.2%} of overlapping pixels"
    speed = f"{record['seconds']:.1f} s, {record['megapixels_per_second']:.2f} megapixels/s"
    return f"{line}, {record['tiles_run']:,} tiles{skipped}, {speed}{agreement}"


def write_tables(
    records: list[Record], failed: list[dict[str, str]], predictor: Predictor, output: OutputFolder
) -> None:
    """Write predictions.csv and summary.json.

    Args:
        records: One for each image that was done.
        failed: Image and error of the others.
        predictor: The model.
        output: Where to.
    """
    text = io.StringIO()
    columns = ["image", "class", "name", "pixels", "share", "area", "probability"]
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for record in records:
        for entry in record["classes"]:
            area = None if record["mpp"] is None or "pixels" not in entry else entry["pixels"] * record["mpp"] ** 2
            writer.writerow({"image": record["image"], **entry, "area": None if area is None else f"{area:.6g}"})
    output.write("predictions.csv", text.getvalue().encode())
    summary = {
        "castvision": castvision.__version__,
        "model": predictor.parts.name,
        "task": predictor.parts.task,
        "classes": list(predictor.class_names),
        "device": str(predictor.device),
        "images": records,
        "failed": failed,
    }
    output.write("summary.json", (json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode())
