"""What a run found: tables of medians with quartiles, ratios and goals on the terminal, and a plot.

The plot shows time and peak memory of a layer over the number of tokens, with the floor of arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.goals import HELD, MISSED, Verdict, is_at_least
from benchmarks.record import Key, Measurement, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

_COLOURS = {HELD: "green", MISSED: "red"}
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))

LABELS = {
    "cast": "CAST", "cast-anchors": "CAST, 64 anchors", "cast-paper": "CAST, the paper's",
    "sdpa": "full attention (SDPA)", "no-core": "attention's core removed",
}  # fmt: skip
_STYLES = {"forward": "-", "training": "--"}
_ITEMSIZES = {"fp32": 4, "bf16": 2}


def print_results(results: Results, console: Console) -> None:
    """A table for each level, dtype, phase and quantity, and what could not be measured."""
    groups: dict[tuple[str, ...], list[Measurement]] = {}
    for each in results.measurements.values():
        key = each.key
        inputs = "" if key.inputs == "random" else key.inputs
        group: tuple[str, ...] = (key.level, key.dtype, key.phase, key.quantity, inputs)
        groups.setdefault(group, []).append(each)
    for group, measurements in sorted(groups.items()):
        console.print(_table(", ".join(filter(None, group)), measurements))
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


def _table(title: str, measurements: Sequence[Measurement]) -> Table:
    """Sizes down, subjects across; beside CAST how many times faster (or larger) the baseline is."""
    from rich.table import Table

    subjects = list(dict.fromkeys(each.key.subject for each in measurements))
    by_cell = {(each.key.size, each.key.subject): each for each in measurements}
    table = Table(title=title, title_justify="left")
    table.add_column("size", justify="right")
    sizes = sorted({each.key.size for each in measurements})
    if len(subjects) > len(sizes) + 3:  # models: one a line
        for name in ("subject", "median", "quartiles", "repeats"):
            table.add_column(name, justify="left" if name == "subject" else "right")
        for size, subject in by_cell:
            table.add_row(f"{size:,}", subject, *_cells(by_cell[size, subject]))
        return table
    for subject in subjects:
        table.add_column(subject, justify="right")
    for size in sizes:
        row = [by_cell.get((size, subject)) for subject in subjects]
        table.add_row(f"{size:,}", *(_cell(each, _baseline(row)) for each in row))
    return table


def _baseline(row: Sequence[Measurement | None]) -> Measurement | None:
    """Full attention of a row, or the block without its core, or the whole layer beside its routing."""
    for name in ("sdpa", "no-core", "cast"):
        found = next((each for each in row if each is not None and each.key.subject == name), None)
        if found is not None:
            return found
    return None


def _cell(measurement: Measurement | None, baseline: Measurement | None) -> str:
    if measurement is None:
        return "–"
    text = format_quantity(measurement.value, measurement.key.quantity)
    if measurement.repeats > 1:
        spread = (measurement.high - measurement.low) / 2 / measurement.value
        text += f" ±{spread:.0%}"
    if baseline is None or baseline is measurement:
        return text
    return f"{text}\n{_ratio(measurement.key, measurement.value, baseline.value)}"


def _ratio(key: Key, value: float, base: float) -> str:
    if key.subject == "routing":
        return f"{value / base:.0%} of the layer"
    if key.quantity == "seconds" and value <= base:
        return f"{base / value:.3g}× faster"
    return f"{value / base:.3g}× of it"


def _cells(measurement: Measurement) -> tuple[str, str, str]:
    texts = (measurement.low, measurement.value, measurement.high)
    low, median, high = (format_quantity(value, measurement.key.quantity) for value in texts)
    return median, f"{low} – {high}", str(measurement.repeats)


def save_plot(path: Path, results: Results) -> bool:
    """Draw and write the plot.

    Args:
        path: A ``.png``; written whole or not at all.
        results: Of a run; the first of layer, block and op that has times is drawn, in the first dtype.

    Returns:
        False, and nothing is written, where there is nothing over N to draw.
    """
    level = next((name for name in ("layer", "block", "op") if _sizes(results, name)), None)
    if level is None:
        return False
    dtype = results.header["settings"]["dtypes"][0]
    figure = new_plot(11, 4.6)
    time_axes, memory_axes = figure.subplots(1, 2)
    _draw(time_axes, results, level, dtype, "seconds")
    _draw(memory_axes, results, level, dtype, "bytes")
    _draw_floors(time_axes, memory_axes, results, level, dtype)
    for axes, title in ((time_axes, "seconds"), (memory_axes, "peak memory, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="tokens N", title=f"{level}, {dtype}: {title}")
        axes.grid(alpha=0.3, which="both")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
    machine = results.header["machine"]
    threads = results.header["settings"]["threads"]
    figure.suptitle(f"{machine.get('gpu', machine['cpu'])}, {threads} thread(s), torch {machine['torch']}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_plot(path, figure)
    return True


def new_plot(width: float, height: float) -> Figure:
    """An empty plot of so many inches.

    NOTE: it has its own canvas: pyplot would look for a display and keep the plot alive.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_plot(path: Path, figure: Figure, dpi: int = 100) -> None:
    """Write a plot as PNG, whole or not at all."""
    from castvision.files import draft  # late: help needs no torch

    with draft(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def _sizes(results: Results, level: str) -> list[int]:
    """Sizes whose CAST layer was timed."""
    return sorted({k.size for k in results.measurements if k.level == level and k.subject == "cast" and _is_curve(k)})


def _is_curve(key: Key) -> bool:
    return key.inputs == "random" and key.quantity == "seconds"


def _draw(axes: Axes, results: Results, level: str, dtype: str, quantity: str) -> None:
    scale = 1.0 if quantity == "seconds" else float(1 << 20)
    for number, (subject, label) in enumerate(LABELS.items()):
        for phase, style in _STYLES.items():
            wanted = Key(level, subject, 0, dtype, phase, quantity=quantity)
            found = sorted(
                (each.key.size, each)
                for each in results.measurements.values()
                if each.key == wanted.of(size=each.key.size, device=each.key.device)
            )
            if not found:
                continue
            x = [size for size, _ in found]
            y = [each.value / scale for _, each in found]
            kind = "forward" if phase == "forward" else "forward + backward"
            axes.plot(x, y, style, marker=".", color=f"C{number}", label=f"{label}, {kind}")
            lows, highs = ([getattr(each, name) / scale for _, each in found] for name in ("low", "high"))
            axes.fill_between(x, lows, highs, color=f"C{number}", alpha=0.15, linewidth=0)


def _draw_floors(time_axes: Axes, memory_axes: Axes, results: Results, level: str, dtype: str) -> None:
    """Arithmetic at the rate of a matrix product, and the bytes of input, q, k, v and output; for a layer's forward."""
    if level != "layer":
        return
    from benchmarks.subjects import HEADS, WIDTH, layer_flops, operand_bytes
    from castvision.ops import make_options

    sizes = _sizes(results, level)
    line: dict[str, Any] = {"color": "grey", "linestyle": ":"}
    rates = [each.value for k, each in results.measurements.items() if k.quantity == "flops/s" and k.dtype == dtype]
    if rates:
        floor = [layer_flops(size, WIDTH, HEADS, make_options()) / rates[0] for size in sizes]
        time_axes.plot(sizes, floor, label="CAST's arithmetic at the rate of a matrix product", **line)
    weights = [operand_bytes(size, WIDTH, _ITEMSIZES[dtype]) / (1 << 20) for size in sizes]
    memory_axes.plot(sizes, weights, label="input, q, k, v and output", **line)
