"""Generated slides whose answer is a small region: each in its own stain, and positive ones with a dark spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from castvision.data.reading.bags import BagWriter
from castvision.models.recipe import InputFormat, Recipe, build, save

SIDE, TILE = 256, 32


def draw_slide(seed: int, is_positive: bool) -> tuple[np.ndarray, tuple[int, int]]:
    """(SIDE, SIDE, 3) uint8 and the (y, x) of the spot's middle, which only positive slides have."""
    rng = np.random.default_rng(seed)
    cells = SIDE // 16
    colours = rng.uniform((150, 110, 140), (230, 200, 220)) + rng.normal(
        0, 12, (cells, cells, 3)
    )  # each slide in its own stain
    picture = colours.repeat(16, 0).repeat(16, 1) + rng.normal(0, 6, (SIDE, SIDE, 3))
    y, x = rng.integers(24, SIDE - 24, 2).tolist()
    if is_positive:
        rows, cols = np.mgrid[:SIDE, :SIDE]
        inside = (rows - y) ** 2 + (cols - x) ** 2 < 16**2
        picture[inside] = rng.normal((60, 30, 150), 6, (int(inside.sum()), 3))
    return picture.clip(0, 255).astype(np.uint8), (y, x)


def write_slides(folder: Path, count: int, first_seed: int = 0) -> dict[str, tuple[str, tuple[int, int]]]:
    """PNG files, half of them positive; the label and the spot of each by name."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = {}
    for number in range(count):
        seed, is_positive = first_seed + number, number % 2 == 1
        picture, place = draw_slide(seed, is_positive)
        Image.fromarray(picture).save(folder / f"s{seed}.png")
        truth[f"s{seed}"] = "tumor" if is_positive else "normal", place
    return truth


def write_encoder(path: Path) -> str:
    """A checkpoint of a small ViT with random weights: its features tell textures apart, no more."""
    seen = InputFormat(3, (TILE, TILE), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    kwargs = {"depth": 2, "embed_dim": 48, "num_heads": 3, "patch_size": 8, "img_size": TILE}
    recipe = Recipe("classification", "vit_tiny_patch16_224", 2, ("a", "b"), kwargs, input=seen)
    torch.manual_seed(0)
    save(path, recipe, build(recipe))
    return str(path)


def write_list(path: Path, truth: dict[str, tuple[str, tuple[int, int]]]) -> Path:
    path.write_text("\n".join(["slide,label", *(f"{name},{label}" for name, (label, _) in truth.items())]) + "\n")
    return path


def write_bags(folder: Path, labels: list[str], channels: int = 6, encoder: str = "vit") -> Path:
    """Random bags of different lengths; those of the second class have one element far away. The list lies there."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(set(labels))
    for number, label in enumerate(labels):
        tiles = 5 + number % 4
        features = rng.normal(size=(tiles, channels)).astype(np.float32)
        features[2] += 4 * names.index(label)
        attributes = {"name": f"s{number}", "patch_size_level0": 32, "target_mpp": 0.5}
        with BagWriter(folder / f"s{number}.h5", channels, encoder, attributes) as writer:
            writer.add(features, np.stack([np.arange(tiles) * 32, np.zeros(tiles)], 1).astype(np.int64))
    rows = [f"s{number},{label}" for number, label in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(["slide,label", *rows]) + "\n")
    return folder / "labels.csv"
