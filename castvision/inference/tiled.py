"""Dense prediction on images of any size: tiles in, a seamless result out, band by band.

Tiles are read ahead, predicted in batches, joined and handed to a sink, which keeps the state of the run.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from castvision.inference.blending import VIEWS, BandJoiner, Block, averaged
from castvision.inference.runtimes import NumpyRuntime, Runtime
from castvision.inference.sinks import ArraySink, Sink, label_dtype
from castvision.inference.tile_source import Informed, Skip, TileSource, as_reader
from castvision.inference.tiling import make_grid
from castvision.inference.totals import Totals

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    import torch
    from torch import Tensor

    from castvision.data import ImageReader
    from castvision.data.transforms.symmetries import Symmetry
    from castvision.inference.tile_source import Mask, TileInput
    from castvision.inference.tiling import Tile, TileGrid

Pixels = np.ndarray[Any, np.dtype[Any]]
TilePredictor = Callable[["Tensor", "Sequence[tuple[Tile, TileInput]]", "Symmetry"], "Tensor"]
"""Turns tiles (B, C, height, width), where they lie, and how they were turned, into (B, classes, height, width)."""


@dataclass(frozen=True)
class Seam:
    """How much neighbouring tiles disagree where they overlap: 0 = no seam can be seen.

    Attributes:
        labels: Share of pixels whose most probable class differs, 0..1.
        difference: Mean absolute difference of the blended values (probabilities).
        pixels: Compared.
    """

    labels: float
    difference: float
    pixels: int


@dataclass(frozen=True)
class TiledResult:
    """What `tiled_inference` gives.

    Attributes:
        labels: (height, width) uint8 (uint16 from 256 classes on), nodata = the dtype's largest; None for other outputs
            or a sink of yours.
        values: (height, width, channels) float32, nodata = NaN, for probabilities and images; else None.
        seam: None if no tiles overlap.
        class_pixels: Pixels of each class; empty for images.
        class_probability: Mean probability of the chosen class over the pixels of each class, NaN for absent ones.
        tiles_run: Including those of the run that was resumed.
        tiles_skipped: Likewise.
        megapixels: Of the image.
        seconds: Of this run.
        megapixels_per_second: Of this run: what was resumed does not count.
    """

    labels: Pixels | None = field(repr=False)
    values: Pixels | None = field(repr=False)
    seam: Seam | None
    class_pixels: tuple[int, ...]
    class_probability: tuple[float, ...]
    tiles_run: int
    tiles_skipped: int
    megapixels: float
    seconds: float
    megapixels_per_second: float


def tiled_inference(
    image: ImageReader | Pixels | str | os.PathLike[str],
    predictor: Callable[..., Tensor],
    *,
    tile: int | tuple[int, int] = 512,
    overlap: int = 64,
    halo: int | None = None,
    batch_size: int = 4,
    level: int = 0,
    output: Literal["labels", "probabilities", "image"] = "labels",
    activation: Literal["softmax", "none"] | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
    tta: Literal["none", "flips", "d4"] = "none",
    skip: Skip | None = None,
    context_size: tuple[int, int] | None = None,
    mask_nodata: bool = False,
    sink: Sink | None = None,
    device: torch.device | str | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> TiledResult:
    """Run a dense predictor over an image that need not fit into memory.

    With a halo of at least the predictor's receptive radius the result is that of the whole image at once. For
    predictors that look further, such as attention, no halo is exact: the result's ``seam`` says how much it matters.

    Memory: one batch of tiles and their outputs, and ``(overlap - 2 * halo) * width * classes`` float32 on the device.

    Args:
        image: A path, an open reader, or an array (height, width) or (height, width, C) of any real dtype.
        predictor: (B, C, tile, tile) float32 in the image's own range to (B, classes, tile, tile); any module or
            callable that MONAI's ``sliding_window_inference`` takes. It normalises by itself. One with an attribute
            ``takes_arrays`` that is true is given arrays of numpy, and gives some.
        tile: Side of a tile, or (height, width). Smaller images are continued by reflection, or by no
            data where the predictor is told of that (``mask_nodata``), and cropped.
        overlap: Pixels neighbouring tiles share.
        halo: Pixels of each tile discarded on every side that has a neighbour; the rest of the overlap is blended.
            None = a quarter of the overlap.
        batch_size: Tiles run at once; batches do not go beyond a band, or bands of a narrow image that fill one.
        level: Of the image's pyramid.
        output: The class of each pixel, the blended probabilities, or the blended values as the predictor gives them.
        activation: Applied before blending; None = softmax, for images none.
        precision: bf16 runs the predictor under autocast; blending is float32.
        tta: Average over flips (4 views) or over all flips and quarter turns (8).
        skip: What to leave out; see `Skip`.
        context_size: Show the predictor the whole image at this (height, width) with every batch, in its own range as
            the tiles are: ``predictor(tiles, context=..., window=...)``, as `castvision.models.ContextSegmenter` wants
            it; both are turned along with the tiles. None = tiles alone.
        mask_nodata: Tell the predictor which pixels hold no data, where there are some: ``predictor(tiles,
            pixel_mask=...)``, (B, tile, tile) bool, as `castvision.models.Segmenter` takes it. In the tiles they are 0
            in any case.
        sink: Where the output goes; None = into the result. A `FileSink` continues a killed run, bit by bit the same.
        device: Where tiles go; None = where the predictor's parameters are, or the CPU.
        progress: True = a progress bar; or a callable given (tiles done, tiles in all).

    Returns:
        Output, disagreement of neighbouring tiles, counts and speed.

    Raises:
        ValueError: An option or a tile size that does not work, an unreadable image, or an output of another size, or
            of one channel where classes are wanted.
        TypeError: A predictor that returns no tensor, pixels that are no real numbers, or no image.
    """
    start = time.perf_counter()
    activation = activation or ("none" if output == "image" else "softmax")
    wanted = None if context_size is None else list(context_size)
    settings = Settings(batch_size, activation, precision, tta, output, wanted, mask_nodata)
    reader, is_ours = as_reader(image)
    sink = ArraySink() if sink is None else sink
    try:
        missing = getattr(predictor, "missing", 0.0)
        source = TileSource(reader, level, skip or Skip(), missing, reflects=not mask_nodata)
        grid = make_grid(source.size, tile, overlap, overlap // 4 if halo is None else halo)
        runtime = _runtime(predictor, device, precision)
        run = TiledRun(source, grid, settings, sink, runtime)
        informed = Informed(predictor, source, runtime.put, context_size=context_size, mask_nodata=mask_nodata)
        with _shown(progress) as report:
            totals, resumed_rows = run(informed, report)
    finally:
        if is_ours:
            reader.close()
    seconds = time.perf_counter() - start
    array = sink.array if isinstance(sink, ArraySink) else None
    seam = totals.seam
    counts = zip(totals.class_pixels, totals.class_probability, strict=True)
    return TiledResult(
        labels=array if output == "labels" else None,
        values=array if output != "labels" else None,
        seam=Seam(seam.labels / seam.pixels, seam.difference / seam.pixels, seam.pixels) if seam.pixels else None,
        class_pixels=tuple(totals.class_pixels),
        class_probability=tuple(total / pixels if pixels else float("nan") for pixels, total in counts),
        tiles_run=totals.tiles_run,
        tiles_skipped=totals.tiles_skipped,
        megapixels=grid.height * grid.width / 1e6,
        seconds=seconds,
        megapixels_per_second=(grid.height - resumed_rows) * grid.width / 1e6 / seconds,
    )


def _runtime(predictor: Callable[..., Tensor], device: torch.device | str | None, precision: str) -> Runtime:
    if getattr(predictor, "takes_arrays", False):
        if precision != "fp32":
            raise ValueError(f"expected precision='fp32' of a model that runs without torch, got {precision=}")
        return NumpyRuntime()
    from castvision.inference.torch_runtime import runtime_of

    return runtime_of(predictor, device, precision)


@contextmanager
def _shown(progress: bool | Callable[[int, int], None]) -> Iterator[Callable[[int, int], None]]:
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        from rich.progress import Progress

        with Progress() as bar:
            task = bar.add_task("tiles")
            yield lambda done, total: bar.update(task, completed=done, total=total)


@dataclass(frozen=True)
class Settings:
    """Options of a run; see `tiled_inference`.

    Raises:
        ValueError: A value that is none of the choices, or too small; a context that cannot be turned.
    """

    batch_size: int
    activation: Literal["softmax", "none"]
    precision: Literal["fp32", "bf16"]
    tta: Literal["none", "flips", "d4"]
    output: Literal["labels", "probabilities", "image"]
    context_size: list[int] | None = None
    mask_nodata: bool = False

    def __post_init__(self) -> None:
        choices = {
            "activation": ("softmax", "none"),
            "precision": ("fp32", "bf16"),
            "tta": tuple(VIEWS),
            "output": ("labels", "probabilities", "image"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"expected {name} in {allowed}, got {getattr(self, name)!r}")
        if self.context_size is not None:
            if min(self.context_size) < 1:
                raise ValueError(f"expected context_size >= 1, got context_size={tuple(self.context_size)}")
            if self.tta == "d4" and len(set(self.context_size)) > 1:
                raise ValueError(
                    "expected a square context for quarter turns (tta='d4'), got "
                    f"context_size={tuple(self.context_size)}; tta='flips' works"
                )
        if self.batch_size < 1:
            raise ValueError(f"expected batch_size >= 1, got {self.batch_size}")


def bands_at_once(grid: TileGrid, batch_size: int) -> int:
    """Bands of a narrow image are worked through together, or its batches would never be full."""
    return max(1, batch_size // len(grid.cols))


class TiledRun:
    """One image through one predictor.

    Args:
        source: Reads tiles.
        grid: Where they lie.
        settings: How.
        sink: Where the output goes.
        runtime: What the predictor runs in.
    """

    def __init__(self, source: TileSource, grid: TileGrid, settings: Settings, sink: Sink, runtime: Runtime) -> None:
        self.source, self.grid, self.settings, self.sink, self.runtime = source, grid, settings, sink, runtime
        self.totals = Totals()
        self.joiner: BandJoiner | None = None
        self.is_replaying = False
        self._step = bands_at_once(grid, settings.batch_size)

    def __call__(self, predictor: TilePredictor, report: Callable[[int, int], None]) -> tuple[Totals, int]:
        """Run all bands that no earlier run finished, up to the one where the sink's state says to stop, if it does.

        Returns:
            The totals and the rows finished before.
        """
        state = self.sink.resume(self._fingerprint())
        first, rows = 0, len(self.grid.rows)
        if state is not None:
            first, self.totals = state["bands"], Totals.from_state(state["totals"])
            rows = state.get("stop", rows)
        with ThreadPoolExecutor(1) as pool, self.runtime.session():
            if 0 < first < rows:
                self._replay(range(first - self._step, first), predictor, pool)
            for row in range(first, rows, self._step):
                bands = range(row, min(row + self._step, rows))
                before, self.totals = self.totals, self.totals.fresh()
                if self.joiner is not None:
                    self.joiner.seam = self.totals.seam
                for done in self._run_bands(bands, predictor, pool):
                    report(row * len(self.grid.cols) + done, len(self.grid))
                latest, self.totals = self.totals, before.plus(self.totals)
                self._commit(bands.stop, latest)
        if not self.totals.channels and rows == len(self.grid.rows) and not first:  # every tile was skipped
            self._allocate(getattr(predictor, "gives", 1))
            self._commit(len(self.grid.rows), self.totals)
        return self.totals, self.grid.rows[first - 1].done if first else 0

    def _fingerprint(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self.settings)
        grid = {"size": list(self.source.size), "tile": list(self.grid.tile), "zone": self.grid.zone}
        grid["starts"] = [self.grid.rows[-1].low, self.grid.cols[-1].low]
        return {**self.source.state(), **grid, **settings}

    def _commit(self, bands: int, latest: Totals) -> None:
        if self.totals.channels:
            totals, latest_totals = map(dataclasses.asdict, (self.totals, latest))
            self.sink.commit({"bands": bands, "totals": totals, "latest": latest_totals})

    def _replay(self, bands: range, predictor: TilePredictor, pool: ThreadPoolExecutor) -> None:
        """Compute finished bands again for the strip they leave to the next one; nothing is written or counted."""
        kept = dataclasses.replace(self.totals, seam=dataclasses.replace(self.totals.seam))
        self.is_replaying = True
        for _ in self._run_bands(bands, predictor, pool):
            pass
        self.is_replaying = False
        self.totals = kept
        if self.joiner is not None:
            self.joiner.seam = kept.seam

    def _run_bands(self, bands: range, predictor: TilePredictor, pool: ThreadPoolExecutor) -> Iterator[int]:
        """Work through some bands, tile by tile in order; yields the number of tiles done."""
        for done, (tile, taken, values) in enumerate(self._predicted(bands, predictor, pool), start=1):
            if values is None:
                self.totals.tiles_skipped += 1
            else:
                self.totals.tiles_run += 1
                if not self.totals.channels:
                    self._allocate(len(values))
                if self.joiner is None:
                    runtime = self.runtime
                    self.joiner = BandJoiner(self.grid, len(values), runtime.device, self.totals.seam, runtime.xp)
            if self.joiner is not None:
                self._hand_out(tile, self.joiner.join(tile, values), taken.valid)
            yield done

    def _predicted(
        self, bands: range, predictor: TilePredictor, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Tile, TileInput, Tensor | None]]:
        """Tiles in order, their predictions from full batches; None for tiles that are left out."""
        waiting: list[tuple[Tile, TileInput]] = []
        batch: list[tuple[Tile, TileInput]] = []

        def predict() -> Iterator[tuple[Tile, TileInput, Tensor | None]]:
            outputs: Iterator[Tensor] = iter(())
            if batch:
                pixels = self.runtime.put(np.stack([taken.pixels for _, taken in batch if taken.pixels is not None]))
                outputs = iter(averaged(partial(self._activated, predictor, batch), pixels, self.settings.tta))
            for tile, taken in waiting:
                yield tile, taken, None if taken.pixels is None else next(outputs)

        for tile, taken in self._read_ahead(bands, pool):
            waiting.append((tile, taken))
            if taken.pixels is not None:
                batch.append((tile, taken))
            if len(batch) == self.settings.batch_size:
                yield from predict()
                waiting, batch = [], []
        yield from predict()

    def _read_ahead(self, bands: range, pool: ThreadPoolExecutor) -> Iterator[tuple[Tile, TileInput]]:
        """Read in another thread while the predictor works, one batch ahead."""
        reading: deque[Any] = deque()
        for tile in chain.from_iterable(self.grid.band(row) for row in bands):
            reading.append((tile, pool.submit(self.source.read, tile)))
            if len(reading) > self.settings.batch_size:
                ready, future = reading.popleft()
                yield ready, future.result()
        for ready, future in reading:
            yield ready, future.result()

    def _activated(
        self, predictor: TilePredictor, placed: Sequence[tuple[Tile, TileInput]], batch: Tensor, view: Symmetry
    ) -> Tensor:
        output = self.runtime.run(partial(predictor, batch, placed, view))
        self.runtime.check(output)
        if output.ndim != 4 or output.shape[2:] != batch.shape[2:] or len(output) != len(batch):
            raise ValueError(
                f"expected the predictor to turn {tuple(batch.shape)} into (B, classes, height, width) of the same "
                f"size, got {tuple(output.shape)}"
            )
        if self.totals.channels not in (0, output.shape[1]):
            raise ValueError(f"expected {self.totals.channels} classes as before, got {output.shape[1]}")
        if output.shape[1] == 1 and (self.settings.activation == "softmax" or self.settings.output == "labels"):
            raise ValueError(
                "expected two classes or more, got one channel, of which a softmax is 1 and the most probable class 0 "
                "everywhere; give torch.cat([torch.zeros_like(x), x], 1) in place of one logit x, or take its values "
                "by output='image'"
            )
        output = self.runtime.single(output)
        activated: Tensor = self.runtime.softmax(output) if self.settings.activation == "softmax" else output
        return activated

    def _allocate(self, channels: int) -> None:
        self.totals.channels = channels
        size = self.source.size
        if self.settings.output != "image":
            self.totals.class_pixels, self.totals.class_probability = [0] * channels, [0.0] * channels
        if self.settings.output == "labels":
            dtype = label_dtype(channels)
            self.sink.allocate(size, dtype, np.iinfo(dtype).max)
        else:
            self.sink.allocate((*size, channels), np.dtype(np.float32), float("nan"))

    def _hand_out(self, tile: Tile, block: Block, valid: Mask | None) -> None:
        if self.is_replaying or not all(block.values.shape):
            return
        known = self.runtime.take(block.known)
        if valid is not None:
            known = known & valid[: known.shape[0], : known.shape[1]]
        if self.settings.output != "image":
            result = self._labels(block.values, known)
        if self.settings.output != "labels":
            result = self.runtime.take(block.values).transpose(1, 2, 0)
            result = np.where(known[..., None], result, np.float32(np.nan))
        self.sink.write(tile.y.low, tile.x.low, result)

    def _labels(self, values: Tensor, known: Mask) -> np.ndarray[Any, np.dtype[Any]]:
        best, labels = self.runtime.best(values)
        best_of = best[known].astype(np.float64)
        chosen, classes = labels[known], len(values)
        for number, pixels in enumerate(np.bincount(chosen, minlength=classes).tolist()):
            self.totals.class_pixels[number] += pixels
        for number, total in enumerate(np.bincount(chosen, best_of, minlength=classes).tolist()):
            self.totals.class_probability[number] += total
        dtype = label_dtype(classes)
        return np.where(known, labels, np.iinfo(dtype).max).astype(dtype)
