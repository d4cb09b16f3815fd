"""Level tiled: megapixels a second and peak memory of ``castvision predict`` on a generated image of 20,000² pixels.

The model is a small one with random weights, so that reading, tiling, blending and writing are what is measured. Each
run is a process of its own; so is one on a small image, whose memory is the model's and the libraries' share.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from benchmarks.levels import Outcome, Settings, Task
from benchmarks.measuring import run_alone
from benchmarks.record import Key, single_measurement
from castvision.data.input_format import InputFormat
from castvision.models.recipe import Recipe, build, save

SUBJECT = "predict, vit_tiny_patch16 of width 32"
_SIZES = (1024, 20_000)
_QUICK_SIZES = (1024, 4096)
_TILE = 512
_MODEL = {"depth": 1, "embed_dim": 32, "num_heads": 2, "img_size": _TILE}
_CLASSES = ("ground", "road", "water", "roof")
_RUN = """
import sys
from castvision_cli import main
code = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]
sys.stderr.write(f"\\npeak {int(peak) * 1024}\\n")
sys.exit(code)
"""


def tiled_tasks(settings: Settings) -> list[Task]:
    """A small image and a large one."""
    tasks = []
    for size in _QUICK_SIZES if settings.quick else _SIZES:
        key = Key("tiled", SUBJECT, size, quantity="megapixels/s")
        keys = (key, key.of(quantity="bytes"))
        tasks.append(Task(f"tiled inference, {size:,} px", keys, partial(_measure, keys, settings.threads)))
    return tasks


def _measure(keys: tuple[Key, Key], threads: int) -> Outcome:
    speed, memory = keys
    with tempfile.TemporaryDirectory() as folder:
        image, checkpoint, output = (Path(folder) / name for name in ("image.tif", "model.ckpt", "out"))
        write_image(image, speed.size)
        write_checkpoint(checkpoint)
        arguments = ["predict", str(image), "--model", str(checkpoint), "--output", str(output)]
        done = run_alone(["-c", _RUN, *arguments], threads)
        if done.returncode:
            return [], {f"tiled {speed.size}": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        record = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    peak = float(done.stderr.split("peak ")[-1])
    (of_image,) = record["images"]
    rate = speed.size**2 / 1e6 / of_image["seconds"]
    return [single_measurement(speed, rate), single_measurement(memory, peak)], {}


def write_image(path: Path, size: int) -> None:
    """A tiled RGB TIFF of ``size`` pixels a side, smooth with noise, written tile by tile."""
    across = -(-size // _TILE)
    tifffile.imwrite(
        path, _tiles(across), shape=(size, size, 3), dtype=np.uint8, tile=(_TILE, _TILE), photometric="rgb",
        bigtiff=True,
    )  # fmt: skip


def _tiles(across: int) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
    rng = np.random.default_rng(0)
    for index in range(across * across):
        coarse = rng.integers(0, 224, (_TILE // 64, _TILE // 64, 3), dtype=np.uint8)
        noise = rng.integers(0, 32, (_TILE, _TILE, 3), dtype=np.uint8)
        yield coarse.repeat(64, 0).repeat(64, 1) + noise + np.uint8(index % 2)


def write_checkpoint(path: Path) -> None:
    """A segmenter with random weights, as training would have written it."""
    torch.manual_seed(0)
    recipe = Recipe(
        "segmentation", "vit_tiny_patch16_224", len(_CLASSES), _CLASSES, _MODEL, "LinearHead",
        input=InputFormat(3, (_TILE, _TILE), mean=(0.5,) * 3, std=(0.25,) * 3),
    )  # fmt: skip
    save(path, recipe, build(recipe))
