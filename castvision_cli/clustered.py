"""``--cluster``: the images of a command on a Dask cluster, before a person's eyes."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from castvision.errors import FAILURES, one_line
from castvision.inference import cluster
from castvision.inference.cluster import Embedding, Measurement, Prediction

__all__ = ["Embedding", "Measurement", "Prediction", "each_image_on", "measure_on"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rich.console import Console

    from castvision.inference.evaluation import Evaluation


def each_image_on(
    address: str,
    work: Prediction | Embedding,
    images: dict[Path, str],
    masks: dict[Path, Path],
    take: Callable[[Path, str], str],
    console: Console,
) -> list[dict[str, str]]:
    """Work on all images behind a bar, then take their records in order.

    Args:
        address: See `castvision.inference.cluster.connected`.
        work: What is done.
        images: Each image and its name.
        masks: Of some of them, where to work.
        take: Reads what was done for an image, and returns a line to print.
        console: Where to print.

    Returns:
        Image and error of those whose work failed.

    Raises:
        OSError: No scheduler answers.
    """
    with _progress(console, len(images)) as report, cluster.connected(address) as client:
        failed = cluster.distribute(client, work, images, masks, report)
    for path, name in images.items():
        if path not in failed:
            try:
                console.print(take(path, name), soft_wrap=True, highlight=False, markup=False)
            except FAILURES as error:
                failed[path] = one_line(error)
    return [{"image": str(path), "error": failed[path]} for path in images if path in failed]


def measure_on(
    address: str, work: Measurement, evaluation: Evaluation, images: dict[Path, str], console: Console
) -> list[dict[str, str]]:
    """As `each_image_on`, for an evaluation, to which all counts are added in the order of the images."""
    with _progress(console, len(images)) as report, cluster.connected(address) as client:
        found, failed = cluster.measure(client, work, images, report)
    for tally, told in found.values():
        evaluation.tally.merge(tally)
        if told is not None:
            console.print(told, soft_wrap=True, highlight=False, markup=False)
    return [{"image": str(path), "error": error} for path, error in failed.items()]


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Callable[[Path | None, int, int], None]]:
    """A bar of units; a line for each image where there is no terminal."""
    logging.getLogger("distributed").setLevel(logging.ERROR)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("images and parts of them", total=total)

        def report(path: Path | None, done: int, total: int) -> None:
            progress.update(bar, completed=done, total=total)
            if path is not None and not console.is_terminal:
                console.print(f"{done} of {total}: {path}", soft_wrap=True, highlight=False, markup=False)

        yield report
