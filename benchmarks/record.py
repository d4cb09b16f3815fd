"""Figures, what they are of, and the JSON file that keeps them, written anew after every measurement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class Key:
    """What a figure is of; everything but ``quantity`` also says how to build it (:mod:`.subjects`).

    Attributes:
        level: A name of :data:`benchmarks.levels.LEVELS`.
        subject: The competitor: "cast", "cast-anchors", "sdpa", a model's name …
        size: Tokens N, or pixels a side for "model" and "data".
        dtype: "fp32" or "bf16".
        phase: "forward" or "training" (forward and backward).
        device: "cpu" or "cuda".
        inputs: "random"; or, where routing is looked at, the share of tokens that are all alike, such as "50% blank".
        quantity: "seconds", "bytes", "flops", "flops/s", "parameters", "images/s" or
            "megapixels/s".
    """

    level: str
    subject: str
    size: int
    dtype: str = "fp32"
    phase: str = "forward"
    device: str = "cpu"
    inputs: str = "random"
    quantity: str = "seconds"

    def of(self, **changes: Any) -> Key:
        """The same key with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        key: What of.
        value: Median of the repeats.
        low: First quartile.
        high: Third quartile.
        repeats: How many; 0 for a value worked out from others.
        note: Anything a reader must know.
    """

    key: Key
    value: float
    low: float
    high: float
    repeats: int = 1
    note: str = ""


def single_figure(key: Key, value: float, note: str = "", repeats: int = 1) -> Figure:
    """A figure without a spread."""
    return Figure(key, float(value), float(value), float(value), repeats, note)


class Results:
    """All figures of a run, by key, and what could not be measured, on disk after every change.

    Args:
        path: The JSON file. One that exists must be an unfinished run of the same header, which then goes on.
        header: Machine and settings, plain values.

    Raises:
        FileExistsError: The file holds a finished run, or one of another machine or other settings.
        ValueError: The file is not one of ours.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, json.loads(json.dumps(header))
        self.figures: dict[Key, Figure] = {}
        self.failures: dict[str, str] = {}
        self.finished = False
        if path.exists():
            self._go_on(_read(path))

    def add(self, figures: Iterable[Figure], failures: Mapping[str, str] | None = None) -> None:
        """Keep figures, and reasons by title for what gave none, and write the file."""
        self.figures.update({figure.key: figure for figure in figures})
        self.failures.update(failures or {})
        self._write()

    def finish(self) -> None:
        """Mark the run complete."""
        self.finished = True
        self._write()

    def value(self, key: Key) -> float | None:
        """The median, or None where it was not measured."""
        figure = self.figures.get(key)
        return None if figure is None else figure.value

    def _go_on(self, found: dict[str, Any]) -> None:
        if found["finished"] or found["header"] != self.header:
            why = "a finished run" if found["finished"] else "a run of another machine or other settings"
            raise FileExistsError(f"{self.path} holds {why}; choose another folder with --output")
        self.figures = {figure.key: figure for figure in map(_figure_of, found["figures"])}

    def _write(self) -> None:
        content = {
            "format": FORMAT, "header": self.header, "finished": self.finished, "failures": self.failures,
            "figures": [asdict(figure) for figure in self.figures.values()],
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)


def load_results(path: Path) -> Results:
    """A run from its file, finished or not, to look at.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not one of ours.
    """
    found = _read(path)
    results = Results(path.with_name(f".{path.name}.unwritten"), found["header"])
    results.path, results.finished, results.failures = path, found["finished"], found["failures"]
    results.figures = {figure.key: figure for figure in map(_figure_of, found["figures"])}
    return results


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); choose another folder") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"expected a benchmark of format {FORMAT} in {path}; choose another folder")
    return found


def _figure_of(entry: dict[str, Any]) -> Figure:
    return Figure(**{**entry, "key": Key(**entry["key"])})
