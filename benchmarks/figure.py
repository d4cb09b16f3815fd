"""The picture: time and peak memory of a layer over the number of tokens, with the floor of arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import Key, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "cast": "CAST", "cast-anchors": "CAST, 64 anchors", "cast-paper": "CAST, the paper's",
    "sdpa": "full attention (SDPA)", "no-core": "attention's core removed",
}  # fmt: skip
_STYLES = {"forward": "-", "training": "--"}
_ITEMSIZES = {"fp32": 4, "bf16": 2}


def save_figure(path: Path, results: Results) -> bool:
    """Draw and write the picture.

    Args:
        path: A ``.png``; written whole or not at all.
        results: Of a run; the first of layer, block and op that has times is drawn, in the first dtype.

    Returns:
        False, and nothing is written, where there is nothing over N to draw.
    """
    level = next((name for name in ("layer", "block", "op") if _sizes(results, name)), None)
    if level is None:
        return False
    # NOTE: a Figure with its own canvas: pyplot would look for a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dtype = results.header["settings"]["dtypes"][0]
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
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
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)
    return True


def _sizes(results: Results, level: str) -> list[int]:
    """Sizes whose CAST layer was timed."""
    return sorted({k.size for k in results.figures if k.level == level and k.subject == "cast" and _is_curve(k)})


def _is_curve(key: Key) -> bool:
    return key.inputs == "random" and key.quantity == "seconds"


def _draw(axes: Axes, results: Results, level: str, dtype: str, quantity: str) -> None:
    scale = 1.0 if quantity == "seconds" else float(1 << 20)
    for number, (subject, label) in enumerate(LABELS.items()):
        for phase, style in _STYLES.items():
            wanted = Key(level, subject, 0, dtype, phase, quantity=quantity)
            found = sorted(
                (figure.key.size, figure)
                for figure in results.figures.values()
                if figure.key == wanted.of(size=figure.key.size, device=figure.key.device)
            )
            if not found:
                continue
            x = [size for size, _ in found]
            y = [figure.value / scale for _, figure in found]
            kind = "forward" if phase == "forward" else "forward + backward"
            axes.plot(x, y, style, marker=".", color=f"C{number}", label=f"{label}, {kind}")
            lows, highs = ([getattr(figure, name) / scale for _, figure in found] for name in ("low", "high"))
            axes.fill_between(x, lows, highs, color=f"C{number}", alpha=0.15, linewidth=0)


def _draw_floors(time_axes: Axes, memory_axes: Axes, results: Results, level: str, dtype: str) -> None:
    """Arithmetic at the rate of a matrix product, and the bytes of input, q, k, v and output; for a layer's forward."""
    if level != "layer":
        return
    from benchmarks.arithmetic import layer_flops, operand_bytes
    from benchmarks.subjects import HEADS, WIDTH
    from castvision.ops import make_options

    sizes = _sizes(results, level)
    line: dict[str, Any] = {"color": "grey", "linestyle": ":"}
    rates = [f.value for k, f in results.figures.items() if k.quantity == "flops/s" and k.dtype == dtype]
    if rates:
        floor = [layer_flops(size, WIDTH, HEADS, make_options()) / rates[0] for size in sizes]
        time_axes.plot(sizes, floor, label="CAST's arithmetic at the rate of a matrix product", **line)
    weights = [operand_bytes(size, WIDTH, _ITEMSIZES[dtype]) / (1 << 20) for size in sizes]
    memory_axes.plot(sizes, weights, label="input, q, k, v and output", **line)
