"""Small data sets of every kind a newcomer comes with: files as castvision reads them, and the same pixels as arrays.

Photographs and textures are those inside scikit-image; the rest is drawn. Images for training and held-out ones come
from different parts of each picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile
from PIL import Image
from scipy import ndimage

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, np.dtype[Any]]
Split = tuple[Array, Array]

SIDE = 32
"""Height and width of all images."""
COUNTS = {"train": 200, "val": 160}
TEXTURES = ("brick.png", "grass.png", "gravel.png", "coins.png", "page.png", "moon.png")
PICTURES = ("astronaut.png", "coffee.png", "chelsea.png", "hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png")
_PLACE = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0, 0, 0, 500_000.0, 5_000_000.0, 0), True),
          (34735, "H", 16, (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633), True)]  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
        config: The shipped configuration that trains on it.
        metric: What the configuration's task is judged by, 0..1.
        make: Draws one split, images (N, channels, side, side) and their targets.
        save: Writes both splits as files below a folder.
        size_flag: Of the configuration, for the side of images.
    """

    config: str
    metric: str
    make: Callable[[str, np.random.Generator], Split]
    save: Callable[[Path, dict[str, Split]], None]
    size_flag: str = "--data.img_size"


def write(kind: Kind, folder: Path) -> None:
    """Write a kind's files to ``folder/data`` and its pixels to ``folder/arrays.npz``, the same in every run."""
    splits = {split: kind.make(split, np.random.default_rng(number)) for number, split in enumerate(COUNTS)}
    kind.save(folder / "data", splits)
    train, val = splits["train"], splits["val"]
    np.savez(folder / "arrays.npz", images=train[0], targets=train[1], held_images=val[0], held_targets=val[1])


def _picture(name: str, split: str) -> Array:
    """The left three fifths of a picture inside scikit-image for training, the right third held out."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
        pixels = np.asarray(image.convert("RGB"))
    width = pixels.shape[1]
    return pixels[:, : 3 * width // 5] if split == "train" else pixels[:, 2 * width // 3 :]


def _crop(pixels: Array, rng: np.random.Generator, side: int = SIDE) -> Array:
    y, x = (int(rng.integers(0, size - side + 1)) for size in pixels.shape[:2])
    return pixels[y : y + side, x : x + side]


def _planes(images: list[Array]) -> Array:
    stacked = np.stack(images)
    return stacked[:, None] if stacked.ndim == 3 else np.moveaxis(stacked, -1, 1)


def pictures(split: str, rng: np.random.Generator) -> Split:
    """Crops of twelve pictures; the class is the picture."""
    names = (*TEXTURES, *PICTURES)
    labels = np.arange(COUNTS[split]) % len(names)
    parts = [_picture(name, split) for name in names]
    return _planes([_crop(parts[label], rng) for label in labels]), labels


def mosaics(split: str, rng: np.random.Generator) -> Split:
    """Two by two crops of six textures; the labels are those that occur."""
    parts = [_picture(name, split) for name in TEXTURES]
    images, targets = [], np.zeros((COUNTS[split], len(TEXTURES)), np.float32)
    for target in targets:
        present = rng.choice(len(TEXTURES), size=int(rng.integers(1, 4)), replace=False)
        cells = [_crop(parts[label], rng, SIDE // 2) for label in rng.permutation(np.resize(present, 4))]
        images.append(np.concatenate([np.concatenate(cells[:2], 1), np.concatenate(cells[2:], 1)]))
        target[present] = 1
    return _planes(images), targets


def _ellipse(rng: np.random.Generator, low: float, high: float) -> Array:
    y, x = np.mgrid[:SIDE, :SIDE]
    cy, cx, angle = *rng.uniform(4, SIDE - 4, 2), rng.uniform(0, np.pi)
    tall, wide = rng.uniform(low, high, 2)
    along = (y - cy) * np.cos(angle) + (x - cx) * np.sin(angle)
    across = (x - cx) * np.cos(angle) - (y - cy) * np.sin(angle)
    distance: Array = (along / tall) ** 2 + (across / wide) ** 2
    return distance


def surfaces(split: str, rng: np.random.Generator) -> Split:
    """Patches of brick and grass on gravel, in grey of 8 bits; the class of each pixel is its surface."""
    parts = [_picture(name, split)[..., 0] for name in ("gravel.png", "brick.png", "grass.png")]
    images, masks = [], []
    for _ in range(COUNTS[split]):
        pixels, mask = _crop(parts[0], rng).copy(), np.zeros((SIDE, SIDE), np.uint8)
        for label in rng.permutation([1, 2, int(rng.integers(1, 3))]):
            inside = _ellipse(rng, 6, 12) < 1
            mask[inside], pixels[inside] = label, _crop(parts[label], rng)[inside]
        images.append(pixels)
        masks.append(mask)
    return _planes(images), np.stack(masks)


def nuclei(split: str, rng: np.random.Generator) -> Split:
    """Bright discs that touch, in 16 bits of which a sixteenth is used; a dark line parts them."""
    images, masks = [], []
    for _ in range(COUNTS[split]):
        fields = np.stack([_ellipse(rng, 4, 7) for _ in range(int(rng.integers(4, 8)))])
        nearest = np.sort(fields, axis=0)
        mask = (nearest[0] < 1) & (nearest[1] - nearest[0] > 0.35)
        light = np.exp(-nearest[0]) * rng.uniform(600, 2500) * (1 - 0.5 * (nearest[1] - nearest[0] < 0.35))
        shade = 300 + 4800 * ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 8, mode="wrap")
        noisy = rng.poisson(np.clip(ndimage.gaussian_filter(light, 1) + shade, 0, 4000) / 8) * 8
        images.append(np.clip(noisy, 0, 4095).astype(np.uint16))
        masks.append(mask.astype(np.uint8))
    return _planes(images), np.stack(masks)


def raster(split: str) -> tuple[Array, Array]:
    """Two parts of one drawn landscape, (rows, 1,024, 3) uint8, and its water; land is rougher, its colours near."""
    rng = np.random.default_rng(7)
    height = sum(
        ndimage.gaussian_filter(rng.standard_normal((1024, 1024)), size, mode="wrap") * size**1.2
        for size in (60, 24, 9)
    )
    water = height < np.quantile(height, 0.4)
    rough = ndimage.gaussian_filter(rng.standard_normal((1024, 1024)), 1) * np.where(water, 12, 40)
    tint = np.array([80, 95, 105]) + np.where(water[..., None], [-6, 0, 10], [8, 4, -6])
    light = 15 * ndimage.gaussian_filter(rng.standard_normal((1024, 1024)), 40, mode="wrap") * 40
    pixels = tint + (rough + light)[..., None] + rng.normal(0, 14, (1024, 1024, 3))
    rows = slice(0, 720) if split == "train" else slice(768, 896)
    return np.clip(pixels, 0, 255).astype(np.uint8)[rows], water.astype(np.uint8)[rows]


def windows(split: str, rng: np.random.Generator) -> Split:
    """Windows of the raster: random ones for training, all that lie side by side of what is held out."""
    pixels, mask = raster(split)
    if split == "train":
        corners = [[int(rng.integers(0, size - SIDE + 1)) for size in mask.shape] for _ in range(COUNTS[split])]
    else:
        corners = [[y, x] for y in range(0, mask.shape[0], SIDE) for x in range(0, mask.shape[1], SIDE)]
    cut = [(slice(y, y + SIDE), slice(x, x + SIDE)) for y, x in corners]
    return _planes([pixels[part] for part in cut]), np.stack([mask[part] for part in cut])


def slices(split: str, rng: np.random.Generator) -> Split:
    """Ten nested and lateral regions of a phantom, bent and noisy; several are as bright as others elsewhere."""
    level = np.array([8, 190, 60, 120, 165, 95, 40, 120, 75, 165])
    images, masks = [], []
    for _ in range(COUNTS[split]):
        y, x = np.mgrid[:SIDE, :SIDE] / (SIDE / 2) - 1
        bend = [ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 5) * 0.7 for _ in range(2)]
        y, x = (y + bend[0] + rng.normal(0, 0.05)) * rng.uniform(0.9, 1.1), (x + bend[1]) * rng.uniform(0.9, 1.1)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        for label, radius in ((1, 0.88), (2, 0.78), (3, 0.72), (4, 0.52)):
            mask[(y / 1.05) ** 2 + (x / 0.9) ** 2 < radius**2] = label
        for label, (cy, cx, tall, wide) in enumerate(
            ((-0.12, 0.17, 0.24, 0.1), (-0.12, -0.17, 0.24, 0.1), (0.3, 0.0, 0.12, 0.2), (0.0, 0.0, 0.34, 0.05),
             (-0.6, 0.0, 0.08, 0.22)), start=5,
        ):  # fmt: skip
            mask[((y - cy) / tall) ** 2 + ((x - cx) / wide) ** 2 < 1] = label
        bright = level[mask] * rng.uniform(0.85, 1.15) + rng.normal(0, 10, mask.shape)
        images.append(np.clip(ndimage.gaussian_filter(bright, 0.4), 0, 255).astype(np.uint8))
        masks.append(mask)
    return _planes(images), np.stack(masks)


def _save_image(path: Path, planes: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(planes[0] if len(planes) == 1 else np.moveaxis(planes, 0, -1)).save(path)


def save_folders(root: Path, splits: dict[str, Split]) -> None:
    """``ROOT/SPLIT/CLASS/NUMBER.png``."""
    for split, (images, labels) in splits.items():
        for number, (planes, label) in enumerate(zip(images, labels, strict=True)):
            _save_image(root / split / f"picture{label:02}" / f"{number:03}.png", planes)


def save_lists(root: Path, splits: dict[str, Split]) -> None:
    """``ROOT/SPLIT.csv`` and its images."""
    for split, (images, targets) in splits.items():
        lines = ["path," + ",".join(Path(name).stem for name in TEXTURES)]
        for number, (planes, target) in enumerate(zip(images, targets, strict=True)):
            _save_image(root / split / f"{number:03}.png", planes)
            lines.append(f"{split}/{number:03}.png," + ",".join(str(int(value)) for value in target))
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")


def save_pairs(root: Path, splits: dict[str, Split]) -> None:
    """``ROOT/SPLIT/images`` and ``ROOT/SPLIT/masks``."""
    for split, (images, masks) in splits.items():
        for number, (planes, mask) in enumerate(zip(images, masks, strict=True)):
            _save_image(root / split / "images" / f"{number:03}.png", planes)
            _save_image(root / split / "masks" / f"{number:03}.png", mask[None])


def save_raster(root: Path, splits: dict[str, Split]) -> None:
    """``ROOT/SPLIT/images/scene.tif`` with its place on the ground, and its mask."""
    for split in splits:
        for folder, pixels in zip(("images", "masks"), raster(split), strict=True):
            (root / split / folder).mkdir(parents=True)
            colours = "rgb" if pixels.ndim == 3 else "minisblack"
            path = root / split / folder / "scene.tif"
            tifffile.imwrite(path, pixels, tile=(256, 256), photometric=colours, extratags=_PLACE)


KINDS = {
    "image folder": Kind("image_folder", "acc1", pictures, save_folders),
    "several labels, CSV": Kind("multilabel_csv", "map", mosaics, save_lists),
    "segmentation folder, 8 bits": Kind("segmentation_folder", "miou", surfaces, save_pairs),
    "touching nuclei, 16 bits": Kind("segmentation_folder", "miou", nuclei, save_pairs),
    "windows of one raster": Kind("windows", "miou", windows, save_raster, size_flag="--data.size"),
    "slices, 10 classes": Kind("segmentation_folder", "miou", slices, save_pairs),
}
