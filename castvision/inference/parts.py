"""Some bands of a large image at a time, each lot a file of its own: what several processes work on, joined again.

A part is written beside its place and moved there, so that it is there whole or not at all, and may be worked on twice.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from castvision.files import draft
from castvision.inference.sinks import FileSink
from castvision.inference.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from castvision.inference.tiled import TiledResult
    from castvision.inference.tiling import TileGrid

Pixels = np.ndarray[Any, np.dtype[Any]]
LOTS = 8
"""Times the bands that are worked on together in a part: one lot more is computed for its upper border."""
_ROWS = 256


@dataclass(frozen=True)
class Part:
    """Bands ``first..stop`` of an image, whose output is rows ``top..bottom``."""

    first: int
    stop: int
    top: int
    bottom: int


def plan_parts(grid: TileGrid, at_once: int) -> list[Part]:
    """The parts of an image; none for one that is not worth cutting.

    Args:
        grid: Its tiles.
        at_once: Bands that are worked on together.
    """
    step, count = LOTS * at_once, len(grid.rows)
    if count <= step:
        return []
    bounds = [*range(0, count, step), count]
    return [Part(first, stop, grid.rows[first].low, grid.rows[stop - 1].done) for first, stop in pairwise(bounds)]


class PartSink:
    """Takes a part's output; see `castvision.inference.sinks.Sink`.

    Args:
        path: Of the file of rows; what is known of it stands beside it (``.json``), and is written last.
        part: Which.
        worker: A name that no other process has, for what is not complete.
    """

    def __init__(self, path: Path, part: Part, worker: str) -> None:
        self.path, self.part = path, part
        self._file = FileSink(path.with_name(f"{path.name}.{worker}"))
        self._known: dict[str, Any] = {"layout": None, "lots": []}

    @staticmethod
    def facts_of(path: Path) -> Path:
        """The file that says a part is complete."""
        return path.with_name(f"{path.name}.json")

    def resume(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Sink`: begin and stop where the part does."""
        self._known["settings"] = dict(settings)
        return {"bands": self.part.first, "stop": self.part.stop, "totals": dataclasses.asdict(Totals())}

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], fill: float) -> None:
        """See `Sink`."""
        self._known["layout"] = {"shape": list(shape), "dtype": np.dtype(dtype).str, "fill": float(fill)}
        self._file.allocate((self.part.bottom - self.part.top, *shape[1:]), dtype, fill)

    def write(self, y: int, x: int, block: Pixels) -> None:
        """See `Sink`."""
        self._file.write(y - self.part.top, x, block)

    def commit(self, state: Mapping[str, Any]) -> None:
        """See `Sink`."""
        self._known["lots"].append(state["latest"])

    def finish(self, result: TiledResult) -> None:
        """Put the part in its place."""
        counts = {"tiles_run": result.tiles_run, "tiles_skipped": result.tiles_skipped}
        if self._known["layout"] is not None:
            self._file.path.replace(self.path)
        with draft(self.facts_of(self.path)) as temporary:
            temporary.write_text(json.dumps({**self._known, **counts, **dataclasses.asdict(self.part)}))

    def discard(self) -> None:
        """Delete what is not complete."""
        self._file.discard()


def join_parts(paths: Sequence[Path], store: Path) -> None:
    """Join the parts of an image to what a run of one process leaves in a file when its last band is done.

    Args:
        paths: Of the parts, in order.
        store: Of the `FileSink` that is to be resumed. Not written where every tile of every part was left out.
    """
    facts = [json.loads(PartSink.facts_of(path).read_text()) for path in paths]
    known = [each for each in facts if each["layout"] is not None]
    if not known:
        return
    layout = known[0]["layout"]
    store.parent.mkdir(parents=True, exist_ok=True)
    sink = FileSink(store)
    sink.resume(known[0]["settings"])
    sink.allocate(tuple(layout["shape"]), np.dtype(layout["dtype"]), layout["fill"])
    totals = Totals()
    for path, each in zip(paths, facts, strict=True):
        for lot in each["lots"]:
            totals = totals.plus(Totals.from_state(lot))
        if each["layout"] is None:
            continue
        rows = np.memmap(path, np.dtype(layout["dtype"]), "r", 0, (each["bottom"] - each["top"], *layout["shape"][1:]))
        for top in range(0, len(rows), _ROWS):
            sink.write(each["top"] + top, 0, rows[top : top + _ROWS])
    totals.tiles_run, totals.tiles_skipped = (sum(each[n] for each in facts) for n in ("tiles_run", "tiles_skipped"))
    sink.commit({"bands": facts[-1]["stop"], "totals": dataclasses.asdict(totals)})


def discard_parts(paths: Sequence[Path]) -> None:
    """Delete parts."""
    for path in paths:
        path.unlink(missing_ok=True)
        PartSink.facts_of(path).unlink(missing_ok=True)
