"""Images no larger than the weights' native size, with their classes: nuclei of a microscope, slices of a brain.

Heads are trained on some tokens and scored on others far from them. At this size the image fits one tile, so tiling
and native crops are full attention itself.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from benchmarks.fidelity.probes import fit_head, in_tokens
from benchmarks.fidelity.settings import FULL, Setting

if TYPE_CHECKING:
    from benchmarks.fidelity.features import Backbone

NUCLEI_SIDE = 36
"""Tokens of the nuclei's image down and across: its first 504 of 512 pixels."""

NUCLEI_CELLS = 7
"""Cells that a head tells apart in a token of nuclei, down and across: two pixels each."""

NUCLEI_TRAINED, NUCLEI_HELD = slice(0, 16), slice(20, 36)
"""Columns of tokens; the four between them are neither."""

BRAIN_GRID = (36, 30)
BRAIN_CELLS = 2
BRAIN_SHAPE = (181, 217, 181)
BRAIN_TRAINED, BRAIN_HELD = (24, 56, 88, 120), (40, 72, 104)
"""Axial slices of a millimetre, counted from below."""

KINDS = ("linear", "mlp")


@dataclass(frozen=True)
class Scene:
    """Images of one kind with the class of each cell.

    Attributes:
        name: For people and the JSON.
        images: Each (3, rows * patch, cols * patch), normalised.
        truth: Classes of the images' cells, (images, rows, cols, cells) int64.
        trained: Tokens to train heads on, (images, rows, cols) bool.
        held: Tokens to score on, the same.
        classes: Their number.
    """

    name: str
    images: list[Tensor]
    truth: Tensor
    trained: Tensor
    held: Tensor
    classes: int


def read_nuclei(folder: Path, backbone: Backbone) -> Scene:
    """Background, the inside of nuclei, and their boundaries: pixels of a nucleus within two of something else.

    Args:
        folder: Of ``python tools/fetch_images.py nuclei FOLDER``.
        backbone: Whose patches of 14 pixels and normalisation are meant.

    Raises:
        FileNotFoundError: The folder lacks a file.
        ValueError: The image and the mask are not both 512 pixels a side.
    """
    with Image.open(folder / "img2d.tif") as opened:
        image = np.array(opened, np.float32)
    with Image.open(folder / "mask2d.tif") as opened:
        instances = np.array(opened, np.int64)
    if image.shape != (512, 512) or instances.shape != (512, 512):
        raise ValueError(f"expected nuclei of 512 x 512 pixels, got {image.shape} and a mask of {instances.shape}")
    side = NUCLEI_SIDE * backbone.patch
    low, high = np.percentile(image, (1, 99.8))
    classes = mark_boundaries(instances)[:side, :side]
    step = backbone.patch // NUCLEI_CELLS
    trained, held = (torch.zeros(1, NUCLEI_SIDE, NUCLEI_SIDE, dtype=torch.bool) for _ in range(2))
    trained[:, :, NUCLEI_TRAINED] = True
    held[:, :, NUCLEI_HELD] = True
    pixels = _normalised(((image - low) / (high - low)).clip(0, 1)[:side, :side], backbone)
    truth = in_tokens(torch.from_numpy(classes[::step, ::step].copy()), NUCLEI_CELLS)[None]
    return Scene("nuclei", [pixels], truth, trained, held, 3)


def mark_boundaries(instances: NDArray[np.int64], width: int = 2) -> NDArray[np.int64]:
    """Classes of pixels: 0 background, 1 inside, 2 at most ``width`` - 1 pixels from another instance or background.

    Args:
        instances: (H, W), 0 where there is none; the image's edge is no boundary.
        width: Of the boundary in pixels.
    """
    near = np.zeros(instances.shape, bool)
    padded = np.pad(instances, width, mode="edge")
    rows, cols = instances.shape
    for y in range(-width, width + 1):
        for x in range(-width, width + 1):
            if 0 < abs(y) + abs(x) <= width:
                moved = padded[width + y : width + y + rows, width + x : width + x + cols]
                near |= moved != instances
    return np.where(instances == 0, 0, np.where(near, 2, 1)).astype(np.int64)


def read_brain(folder: Path, backbone: Backbone) -> Scene:
    """Axial slices of a T1 brain at 504 x 420 pixels, and the lobes of its atlas.

    Args:
        folder: Of ``python tools/fetch_images.py brain FOLDER``.
        backbone: Whose patches and normalisation are meant.

    Raises:
        FileNotFoundError: The folder lacks a file.
        ValueError: A volume of another shape or type.
    """
    volume, atlas = (read_volume(folder / name) for name in ("ch2.nii.gz", "aal.nii.gz"))
    lobes = read_lobes(folder / "aal.nii.txt")
    rows, cols = BRAIN_GRID
    images, truth = [], []
    for z in (*BRAIN_TRAINED, *BRAIN_HELD):
        size = (cols * backbone.patch, rows * backbone.patch)
        slice_ = Image.fromarray(volume[z, ::-1]).resize(size, Image.Resampling.BICUBIC)
        images.append(_normalised(np.array(slice_, np.float32) / 255, backbone))
        labels = Image.fromarray(lobes[atlas[z, ::-1]])
        cells = labels.resize((cols * BRAIN_CELLS, rows * BRAIN_CELLS), Image.Resampling.NEAREST)
        truth.append(in_tokens(torch.from_numpy(np.array(cells, np.int64)), BRAIN_CELLS))
    trained = torch.zeros(len(images), *BRAIN_GRID, dtype=torch.bool)
    trained[: len(BRAIN_TRAINED)] = True
    return Scene("brain", images, torch.stack(truth), trained, ~trained, int(lobes.max()) + 1)


def read_volume(path: Path) -> NDArray[np.uint8]:
    """A volume of bytes in a gzipped NIfTI file, (z, y, x).

    Raises:
        ValueError: Another format, shape or type than the templates of MRIcron have.
    """
    content = gzip.decompress(path.read_bytes())
    kind = struct.unpack("<h", content[70:72])[0] if content[344:347] == b"n+1" else None
    shape = struct.unpack("<3h", content[42:48])
    if kind != 2 or shape != BRAIN_SHAPE:
        raise ValueError(f"expected a NIfTI volume of {BRAIN_SHAPE} bytes in {path}, got type {kind} and shape {shape}")
    start = int(struct.unpack("<f", content[108:112])[0])
    return np.frombuffer(content, np.uint8, offset=start, count=shape[0] * shape[1] * shape[2]).reshape(shape[::-1])


def read_lobes(path: Path) -> NDArray[np.uint8]:
    """From the atlas's labels to classes 0..8, (256,).

    The class is the thousands of the region's code, less one: frontal 1, insula 2, limbic 3, occipital 4, parietal 5,
    deep grey matter 6, temporal 7, cerebellum 8; both sides alike. 0 is outside the atlas, white matter included.
    """
    found = np.zeros(256, np.uint8)
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            label, _, code = line.split()
            found[int(label)] = int(code) // 1000 - 1
    return found


def _normalised(grey: NDArray[np.floating[Any]], backbone: Backbone) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(grey, np.float32))[None].expand(3, -1, -1)
    return (pixels - torch.tensor(backbone.mean)[:, None, None]) / torch.tensor(backbone.std)[:, None, None]


def score_scene(backbone: Backbone, scene: Scene, settings: Sequence[Setting], seeds: int) -> Iterator[dict[str, Any]]:
    """Rows of mean IoU over classes on held-out tokens, means of so many heads, setting by setting.

    Yields:
        Scene, setting and seeds; ``own``: heads trained on the setting's features; ``full``: full attention's heads
        fed the setting's; ``unexplained``: of full attention's features, the mean of the images.
    """
    from benchmarks.fidelity.distances import compare_patches

    if not settings:
        return
    full = _extract_all(backbone, scene, FULL)
    full_heads = _train_all(scene, full, seeds)
    for setting in settings:
        patches = full if setting == FULL else _extract_all(backbone, scene, setting)
        own = full_heads if setting == FULL else _train_all(scene, patches, seeds)
        of_own, of_full = (
            {kind: round(sum(mean_iou(head, patches, scene) for head in heads[kind]) / seeds, 4) for kind in KINDS}
            for heads in (own, full_heads)
        )
        pairs = zip(patches.flatten(1, 2), full.flatten(1, 2), strict=True)
        unexplained = sum(compare_patches(*pair)["unexplained"] for pair in pairs) / len(patches)
        yield {
            "scene": scene.name, "setting": setting.name, "seeds": seeds, "own": of_own, "full": of_full,
            "unexplained": round(unexplained, 4),
        }  # fmt: skip


def _extract_all(backbone: Backbone, scene: Scene, setting: Setting) -> Tensor:
    """Tokens of the scene's images, (images, rows, cols, C)."""
    from benchmarks.fidelity.features import extract

    return torch.stack([extract(backbone, image, setting, with_blocks=False).patches for image in scene.images])


def _train_all(scene: Scene, patches: Tensor, seeds: int) -> dict[str, list[nn.Module]]:
    x, y = patches[scene.trained], scene.truth[scene.trained]
    return {kind: [fit_head(x, y, kind, scene.classes, seed) for seed in range(seeds)] for kind in KINDS}


def mean_iou(head: nn.Module, patches: Tensor, scene: Scene) -> float:
    """Mean over the classes of intersection over union on the scene's held-out tokens."""
    with torch.inference_mode():
        found = head(patches[scene.held]).argmax(1)
    wanted = scene.truth[scene.held]
    scores = []
    for each in range(scene.classes):
        union = ((found == each) | (wanted == each)).sum()
        if union:
            scores.append(float(((found == each) & (wanted == each)).sum() / union))
    return sum(scores) / len(scores)
