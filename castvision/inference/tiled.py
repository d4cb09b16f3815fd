"""Dense prediction on images of any size: tiles in, a seamless result out, band by band."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from castvision.inference.sinks import ArraySink, Sink
from castvision.inference.tile_source import Informed, Skip, TileSource, as_reader
from castvision.inference.tiled_run import Settings, TiledRun, Totals
from castvision.inference.tiling import make_grid

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from castvision.data import ImageReader

Pixels = np.ndarray[Any, np.dtype[Any]]


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


def tiled_inference(  # noqa: PLR0913 - the options of one call, as in MONAI's sliding_window_inference
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
            callable that MONAI's ``sliding_window_inference`` takes. It normalises by itself.
        tile: Side of a tile, or (height, width). Smaller images are continued by reflection and cropped.
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
        Output, seam figure, counts and speed.

    Raises:
        ValueError: An option or a tile size that does not work, an unreadable image, or an output of another size.
        TypeError: A predictor that returns no tensor, or pixels that are no real numbers.
    """
    start = time.perf_counter()
    activation = activation or ("none" if output == "image" else "softmax")
    wanted = None if context_size is None else list(context_size)
    settings = Settings(batch_size, activation, precision, tta, output, wanted, mask_nodata)
    reader, is_ours = as_reader(image)
    sink = ArraySink() if sink is None else sink
    try:
        source = TileSource(reader, level, skip or Skip())
        grid = make_grid(source.size, tile, overlap, overlap // 4 if halo is None else halo)
        place = _device_of(predictor, device)
        run = TiledRun(source, grid, settings, sink, place)
        informed = Informed(predictor, source, place, context_size=context_size, mask_nodata=mask_nodata)
        with _shown(progress) as report:
            totals, resumed_rows = run(informed, report)
    finally:
        if is_ours:
            reader.close()
    return _result(totals, settings, sink, (*source.size, resumed_rows), time.perf_counter() - start)


def _device_of(predictor: Callable[..., Tensor], device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    parameter = next(predictor.parameters(), None) if isinstance(predictor, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


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


def _result(
    totals: Totals, settings: Settings, sink: Sink, extent: tuple[int, int, int], seconds: float
) -> TiledResult:
    height, width, resumed_rows = extent
    array = sink.array if isinstance(sink, ArraySink) else None
    seam = totals.seam
    compared = max(seam.pixels, 1)
    counts = zip(totals.class_pixels, totals.class_probability, strict=True)
    return TiledResult(
        labels=array if settings.output == "labels" else None,
        values=array if settings.output != "labels" else None,
        seam=Seam(seam.labels / compared, seam.difference / compared, seam.pixels) if seam.pixels else None,
        class_pixels=tuple(totals.class_pixels),
        class_probability=tuple(total / pixels if pixels else float("nan") for pixels, total in counts),
        tiles_run=totals.tiles_run,
        tiles_skipped=totals.tiles_skipped,
        megapixels=height * width / 1e6,
        seconds=seconds,
        megapixels_per_second=(height - resumed_rows) * width / 1e6 / seconds,
    )
