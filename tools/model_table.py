#!/usr/bin/env python
"""Print the table of models from timm's registry, or write it between its markers in docs/models.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
BEGIN, END = "<!-- models: begin (python tools/model_table.py --write) -->\n", "<!-- models: end -->"


def make_row(name: str) -> str:
    """One model: input, tokens at that size and parameters, counted on a model without storage."""
    from castvision.models.census import census

    row = census(name, runs=False)
    rows, cols = row.grid
    classes = f", {row.num_classes} classes" if row.num_classes != 1000 else ""
    image = " × ".join(map(str, row.input_size))
    return f"| `{name}` | {image} | {rows} × {cols} = {rows * cols:,} | {row.parameters / 1e6:.2f} M{classes} |"


def make_table() -> str:
    """The table as Markdown, ending with a line break."""
    import timm

    import castvision  # noqa: F401 (registers the models)

    head = ["| model | input | tokens | parameters |", "|---|---|---|---|"]
    return "\n".join(head + [make_row(name) for name in timm.list_models("cast_vit_*")]) + "\n"


def replace_table(text: str, table: str) -> str:
    """The page with the table between the markers replaced.

    Raises:
        ValueError: If the markers are missing.
    """
    start, end = text.find(BEGIN), text.find(END)
    if start < 0 or end < start:
        raise ValueError(f"expected the lines {BEGIN.strip()!r} and {END!r} around the table of models")
    return text[: start + len(BEGIN)] + table + text[end:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into docs/models.md instead of printing it")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    table = make_table()
    if arguments.write:
        PAGE.write_text(replace_table(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")
    else:
        print(table, end="")


if __name__ == "__main__":
    main()
