"""Many images, one after the other, before a person's eyes: progress bars, then what could not be done."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from castvision.errors import FAILURES, one_line
from castvision.visualization.legend import shorten

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rich.console import Console
    from rich.progress import TaskID

    Report = Callable[[int, int], None]


def each_image(
    images: dict[Path, str], work: Callable[[Path, str, Report], str | None], console: Console
) -> list[dict[str, str]]:
    """Work on each image behind a bar for the images and one for the tiles of the image at work.

    Args:
        images: Each image and its name.
        work: Called with both and with what it may tell (tiles done, tiles in all); returns a line to print, if any.
        console: Where to print.

    Returns:
        Image and error of those whose work failed; the others go on.
    """
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damaged files are reported once, by us
    failed: list[dict[str, str]] = []
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        whole = progress.add_task("images", total=len(images))
        for path, name in images.items():
            task = progress.add_task(escape(shorten(path.name, 30)), total=None)
            try:
                line = work(path, name, partial(_show_tiles, progress, task))
                if line is not None:
                    console.print(escape(line), soft_wrap=True, highlight=False)
            except FAILURES as error:
                failed.append({"image": str(path), "error": one_line(error)})
            progress.remove_task(task)
            progress.advance(whole)
    return failed


def _show_tiles(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def remarks(record: Mapping[str, Any]) -> str:
    """What the line of a finished image ends with: what is to be told of its scale and of its values, if anything."""
    return "".join(f"; {record[name]}" for name in ("scale", "values") if record.get(name))


def print_end(console: Console, total: int, failed: list[dict[str, str]], done: str, not_done: str = "failed") -> int:
    """Say how many images were done, and name the others.

    Args:
        console: Where to print.
        total: Number of images.
        failed: As `each_image` gives it.
        done: What was done with the others, such as "measured".
        not_done: What happened to the failed ones.

    Returns:
        The exit code: 0 if none failed, else 1.
    """
    console.print(f"{total - len(failed)} of {total} images {escape(done)}", soft_wrap=True)
    for entry in failed:
        named = entry["error"] if entry["image"] in entry["error"] else f"{entry['image']}: {entry['error']}"
        console.print(f"[red]{not_done}[/] {escape(named)}", soft_wrap=True)
    return 1 if failed else 0
