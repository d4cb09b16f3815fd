#!/usr/bin/env python
"""Print one table of finished runs: what was trained, for how long, and the metrics on the test images."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any


def read_run(folder: Path) -> dict[str, Any]:
    """A run's results and test metrics.

    Raises:
        ValueError: If a file is missing or damaged; says which and what writes it.
    """
    files = {"metrics.json": "castvision train fit", "test_metrics.json": "castvision train test"}
    contents = []
    for name, command in files.items():
        try:
            contents.append(json.loads((folder / name).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ValueError(f"expected {folder / name}, as `{command}` writes it, got {error}") from error
    results, test = contents
    return {**results, "test": {k.removeprefix("test/"): v for k, v in test["figures"].items()}}


def make_rows(runs: dict[Path, dict[str, Any]]) -> list[list[str]]:
    """A heading row, then one row for each property and metric; a metric that one run lacks is left blank.

    A model that all runs share stands in the first heading: beside each other the names would not fit a terminal.
    """
    models = [run["model"]["name"] for run in runs.values()]
    is_one = len(set(models)) == 1
    rows = [[models[0] if is_one else "", *(folder.name for folder in runs)]]
    if not is_one:
        rows.append(["model", *models])
    kwargs = [" ".join(f"{k}={v}" for k, v in run["model"]["kwargs"].items()) for run in runs.values()]
    if any(kwargs):
        rows.append(["with", *kwargs])
    rows.append(["parameters", *(f"{run['model']['parameters']:,}" for run in runs.values())])
    rows.append(["images trained on", *(f"{run['training']['images']:,}" for run in runs.values())])
    rows.append(["seconds of training", *(f"{run['training']['seconds']:.0f}" for run in runs.values())])
    for metric in dict.fromkeys(name for run in runs.values() for name in run["test"]):
        values = (run["test"].get(metric) for run in runs.values())
        rows.append([f"test {metric}", *("" if value is None else f"{value:.3f}" for value in values)])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, trained and tested")
    arguments = parser.parse_args()
    try:
        headings, *rows = make_rows({folder: read_run(folder) for folder in arguments.runs})
    except ValueError as error:
        print(f"compare_runs.py: {error}", file=sys.stderr)
        return 1
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
