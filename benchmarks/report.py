"""Tables on the terminal: medians with quartiles, ratios, and the goals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.goals import HELD, MISSED, Verdict, is_at_least
from benchmarks.record import Figure, Key, Results

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COLOURS = {HELD: "green", MISSED: "red"}
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def print_results(results: Results, console: Console) -> None:
    """A table for each level, dtype, phase and quantity, and what could not be measured."""
    groups: dict[tuple[str, ...], list[Figure]] = {}
    for figure in results.figures.values():
        key = figure.key
        inputs = "" if key.inputs == "random" else key.inputs
        group: tuple[str, ...] = (key.level, key.dtype, key.phase, key.quantity, inputs)
        groups.setdefault(group, []).append(figure)
    for group, figures in sorted(groups.items()):
        console.print(_table(", ".join(filter(None, group)), figures))
    for title, reason in results.failures.items():
        console.print(f"[yellow]no figure for {title}: {reason}", highlight=False)


def print_goals(verdicts: Sequence[Verdict], processor: str, console: Console) -> None:
    """Every goal, its measured ratio and whether it holds; ``processor`` says where."""
    from rich.table import Table

    table = Table(title=f"goals on {processor}", title_justify="left")
    for name in ("goal", "bound", "measured", "", "remark"):
        table.add_column(name, justify="right" if name in ("bound", "measured") else "left")
    for verdict in verdicts:
        goal = verdict.goal
        scale, unit = goal.unit
        bound = f"{'≥' if is_at_least(goal) else '≤'} {goal.bound / scale:.4g} {unit}"
        ratio = "–" if verdict.ratio is None else f"{verdict.ratio / scale:.3g} {unit}"
        colour = _COLOURS.get(verdict.outcome, "yellow")
        table.add_row(goal.name, bound.strip(), ratio.strip(), f"[{colour}]{verdict.outcome}", verdict.reason)
    console.print(table)
    counts = {outcome: sum(v.outcome == outcome for v in verdicts) for outcome in (HELD, MISSED, "not measured")}
    console.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))


def format_quantity(value: float, quantity: str) -> str:
    """A value in its unit, three digits: "12.3 ms", "1.21 GiB", "45.1 Gflops/s"."""
    if quantity == "seconds":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
    if quantity == "bytes":
        return f"{value / 2**30:.3g} GiB" if value >= 2**30 else f"{value / 2**20:.3g} MiB"
    if quantity == "images/s":
        return f"{value:,.0f} images/s" if value >= 10 else f"{value:.3g} images/s"
    if quantity == "megapixels/s":
        return f"{value:.3g} megapixels/s"
    scale, prefix = next(((s, p) for s, p in _PREFIXES if value >= s), (1.0, ""))
    unit = "" if quantity == "parameters" else quantity
    return f"{value / scale:.3g} {prefix}{unit}".strip()


def _table(title: str, figures: Sequence[Figure]) -> Table:
    """Sizes down, subjects across; beside CAST how many times faster (or larger) the baseline is."""
    from rich.table import Table

    subjects = list(dict.fromkeys(figure.key.subject for figure in figures))
    by_place = {(figure.key.size, figure.key.subject): figure for figure in figures}
    table = Table(title=title, title_justify="left")
    table.add_column("size", justify="right")
    sizes = sorted({figure.key.size for figure in figures})
    if len(subjects) > len(sizes) + 3:  # models: one a line
        for name in ("subject", "median", "quartiles", "repeats"):
            table.add_column(name, justify="left" if name == "subject" else "right")
        for size, subject in by_place:
            table.add_row(f"{size:,}", subject, *_cells(by_place[size, subject]))
        return table
    for subject in subjects:
        table.add_column(subject, justify="right")
    for size in sizes:
        row = [by_place.get((size, subject)) for subject in subjects]
        table.add_row(f"{size:,}", *(_cell(figure, _baseline(row)) for figure in row))
    return table


def _baseline(row: Sequence[Figure | None]) -> Figure | None:
    """Full attention of a row, or the block without its core, or the whole layer beside its routing."""
    for name in ("sdpa", "no-core", "cast"):
        found = next((figure for figure in row if figure is not None and figure.key.subject == name), None)
        if found is not None:
            return found
    return None


def _cell(figure: Figure | None, baseline: Figure | None) -> str:
    if figure is None:
        return "–"
    text = format_quantity(figure.value, figure.key.quantity)
    if figure.repeats > 1:
        spread = (figure.high - figure.low) / 2 / figure.value
        text += f" ±{spread:.0%}"
    if baseline is None or baseline is figure:
        return text
    ratio = _ratio(figure.key, figure.value, baseline.value)
    return f"{text}\n{ratio}"


def _ratio(key: Key, value: float, base: float) -> str:
    if key.subject == "routing":
        return f"{value / base:.0%} of the layer"
    if key.quantity == "seconds" and value <= base:
        return f"{base / value:.3g}× faster"
    return f"{value / base:.3g}× of it"


def _cells(figure: Figure) -> tuple[str, str, str]:
    quantity = figure.key.quantity
    low, high = format_quantity(figure.low, quantity), format_quantity(figure.high, quantity)
    return format_quantity(figure.value, quantity), f"{low} – {high}", str(figure.repeats)
