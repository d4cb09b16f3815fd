"""The work of `castvision.inference.tiled`: read ahead, predict in batches, join, hand out, keep the state."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from castvision.data.transforms.symmetries import Symmetry
from castvision.inference.blending import BandJoiner, Block, SeamSums
from castvision.inference.sinks import label_dtype
from castvision.inference.views import VIEWS, averaged

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from castvision.inference.sinks import Sink
    from castvision.inference.tile_source import Mask, Patch, TileSource
    from castvision.inference.tiling import Tile, TileGrid

TilePredictor = Callable[[Tensor, "Sequence[tuple[Tile, Patch]]", Symmetry], Tensor]
"""Called with tiles (B, C, height, width), their places and patches, and how they were turned: (B, classes, ...)."""


@dataclass(frozen=True)
class Settings:
    """Options of a run; see `castvision.inference.tiled.tiled_inference`."""

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


@dataclass
class Totals:
    """What a run adds up, over all runs that were resumed."""

    channels: int = 0
    tiles_run: int = 0
    tiles_skipped: int = 0
    class_pixels: list[int] = field(default_factory=list)
    class_probability: list[float] = field(default_factory=list)
    seam: SeamSums = field(default_factory=SeamSums)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Totals:
        """The reverse of ``dataclasses.asdict``."""
        return cls(**{**state, "seam": SeamSums(**state["seam"])})


class TiledRun:
    """One image through one predictor.

    Args:
        source: Reads tiles.
        grid: Where they lie.
        settings: How.
        sink: Where the output goes.
        device: Where the predictor is.

    Raises:
        ValueError: Quarter turns of tiles that are not square.
    """

    def __init__(
        self, source: TileSource, grid: TileGrid, settings: Settings, sink: Sink, device: torch.device
    ) -> None:
        if settings.tta == "d4" and grid.tile[0] != grid.tile[1]:
            raise ValueError(f"expected square tiles for quarter turns (tta='d4'), got {grid.tile=}")
        self.source, self.grid, self.settings, self.sink, self.device = source, grid, settings, sink, device
        self.totals = Totals()
        self.joiner: BandJoiner | None = None
        self.is_replaying = False
        # bands of a narrow image are worked through together, or its batches would never be full
        self._step = max(1, settings.batch_size // len(grid.cols))

    def __call__(self, predictor: TilePredictor, report: Callable[[int, int], None]) -> tuple[Totals, int]:
        """Run all bands that no earlier run finished.

        Returns:
            The totals and the rows finished before.
        """
        state = self.sink.resume(self._fingerprint())
        first, rows = 0, len(self.grid.rows)
        if state is not None:
            first, self.totals = state["bands"], Totals.from_state(state["totals"])
        with ThreadPoolExecutor(1) as pool, torch.inference_mode():
            if 0 < first < rows:
                self._replay(range(first - self._step, first), predictor, pool)
            for row in range(first, rows, self._step):
                bands = range(row, min(row + self._step, rows))
                for done in self._run_bands(bands, predictor, pool):
                    report(row * len(self.grid.cols) + done, len(self.grid))
                self._commit(bands.stop)
        if not self.totals.channels:  # every tile was skipped
            self._allocate(1)
            self._commit(len(self.grid.rows))
        return self.totals, self.grid.rows[first - 1].done if first else 0

    def _fingerprint(self) -> dict[str, Any]:
        image, skip = self.source.image, self.source.skip
        settings = dataclasses.asdict(self.settings)
        grid = {"size": list(self.source.size), "tile": list(self.grid.tile), "zone": self.grid.zone}
        grid["starts"] = [self.grid.rows[-1].low, self.grid.cols[-1].low]
        left_out = {"masked": skip.mask is not None, "min_foreground": skip.min_foreground, "blank": skip.blank}
        return {"image": image.name, "level": self.source.level, **grid, **left_out, **settings}

    def _commit(self, bands: int) -> None:
        if self.totals.channels:
            self.sink.commit({"bands": bands, "totals": dataclasses.asdict(self.totals)})

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
        """Work through some bands; yields the number of tiles done."""
        for done, (tile, patch, values) in enumerate(self._predicted(bands, predictor, pool), start=1):
            if values is None:
                self.totals.tiles_skipped += 1
            else:
                self.totals.tiles_run += 1
                self._prepare(len(values))
            if self.joiner is not None:
                self._hand_out(tile, self.joiner.join(tile, values), patch.valid)
            yield done

    def _predicted(
        self, bands: range, predictor: TilePredictor, pool: ThreadPoolExecutor
    ) -> Iterator[tuple[Tile, Patch, Tensor | None]]:
        """Tiles in order; their predictions come from batches."""
        waiting: list[tuple[Tile, Patch]] = []
        for tile, patch in self._read_ahead(bands, pool):
            waiting.append((tile, patch))
            if sum(patch.pixels is not None for _, patch in waiting) == self.settings.batch_size:
                yield from self._predict(waiting, predictor)
                waiting = []
        yield from self._predict(waiting, predictor)

    def _read_ahead(self, bands: range, pool: ThreadPoolExecutor) -> Iterator[tuple[Tile, Patch]]:
        """Read in another thread while the predictor works, one batch ahead."""
        reading: deque[Any] = deque()
        for tile in chain.from_iterable(self.grid.band(row) for row in bands):
            reading.append((tile, pool.submit(self.source.read, tile)))
            if len(reading) > self.settings.batch_size:
                ready, future = reading.popleft()
                yield ready, future.result()
        for ready, future in reading:
            yield ready, future.result()

    def _predict(
        self, waiting: list[tuple[Tile, Patch]], predictor: TilePredictor
    ) -> Iterator[tuple[Tile, Patch, Tensor | None]]:
        placed = [(tile, patch) for tile, patch in waiting if patch.pixels is not None]
        outputs: Iterator[Tensor] = iter(())
        if placed:
            pixels = np.stack([patch.pixels for _, patch in placed])  # type: ignore[misc]  # none is None
            batch = torch.from_numpy(pixels).to(self.device)  # (B, C, tile height, tile width)
            outputs = iter(averaged(partial(self._activated, predictor, placed), batch, self.settings.tta))
        for tile, patch in waiting:
            yield tile, patch, None if patch.pixels is None else next(outputs)

    def _activated(
        self, predictor: TilePredictor, placed: Sequence[tuple[Tile, Patch]], batch: Tensor, view: Symmetry
    ) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
            output = predictor(batch, placed, view)
        if not isinstance(output, Tensor):
            raise TypeError(f"expected the predictor to return a tensor, got {type(output).__name__}; wrap it")
        if output.ndim != 4 or output.shape[2:] != batch.shape[2:] or len(output) != len(batch):
            raise ValueError(
                f"expected the predictor to turn {tuple(batch.shape)} into (B, classes, height, width) of the same "
                f"size, got {tuple(output.shape)}"
            )
        if self.totals.channels not in (0, output.shape[1]):
            raise ValueError(f"expected {self.totals.channels} classes as before, got {output.shape[1]}")
        output = output.float()
        return output.softmax(dim=1) if self.settings.activation == "softmax" else output

    def _prepare(self, channels: int) -> None:
        if not self.totals.channels:
            self._allocate(channels)
        if self.joiner is None:
            self.joiner = BandJoiner(self.grid, channels, self.device, self.totals.seam)

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
        if self.is_replaying or not block.values.numel():
            return
        known = block.known.cpu().numpy()
        if valid is not None:
            known = known & valid[: known.shape[0], : known.shape[1]]
        if self.settings.output != "image":
            result = self._labels(block.values, known)
        if self.settings.output != "labels":
            result = block.values.permute(1, 2, 0).cpu().numpy()
            result = np.where(known[..., None], result, np.float32(np.nan))
        self.sink.write(tile.y.low, tile.x.low, result)

    def _labels(self, values: Tensor, known: Mask) -> np.ndarray[Any, np.dtype[Any]]:
        best, place = values.max(dim=0)
        labels, best_of = place.cpu().numpy(), best.cpu().numpy()[known].astype(np.float64)
        chosen, classes = labels[known], len(values)
        for number, pixels in enumerate(np.bincount(chosen, minlength=classes).tolist()):
            self.totals.class_pixels[number] += pixels
        for number, total in enumerate(np.bincount(chosen, best_of, minlength=classes).tolist()):
            self.totals.class_probability[number] += total
        dtype = label_dtype(classes)
        return np.where(known, labels, np.iinfo(dtype).max).astype(dtype)
