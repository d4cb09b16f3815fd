"""The vision tasks of Long Range Arena: folders of Pathfinder images, and Image (CIFAR-10 in grey, one token a pixel).

Pathfinder folders are those of the original release, or written by ``castvision make-pathfinder``. The release's
archive nests a second copy of itself, and the inner one is the one everybody uses; ``metadata/<n>.npy`` is plain text
there but a real array in files fresh from the public generator; ``pathfinder32/curv_baseline/imgs/0/sample_172.png`` is
empty. Empty images are left out. The split is that of S4, MEGA and S5: files sorted by number, then 80/10/10 by a torch
generator seeded with 42. (The official code splits shards of its own order instead, which cannot be rebuilt from the
files.)

Image is split as by the official code: the first 90 % of the training images, the last 10 % as validation, CIFAR's
test set. It is normalised as S4 does: mean 122.6 and standard deviation 61 of 255.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10

from castvision.data.transforms.model_input import to_model_input

DIFFICULTIES = {"easy": "curv_baseline", "intermediate": "curv_contour_length_9", "hard": "curv_contour_length_14"}
SPLITS = ("train", "val", "test")
MEAN, STD = 122.6 / 255, 61.0 / 255
"""Of `LRAImage`."""
_NUM_COLUMNS = 11


class LRAPathfinder(Dataset[tuple[Tensor, Tensor]]):
    """Items (image (1, S, S) float32 in [-1, 1], label () int64; 1 = connected).

    Args:
        root: The unpacked release, or one folder with ``imgs`` and ``metadata``.
        resolution: 32, 64, 128 or 256; unused for a single folder.
        difficulty: "easy", "intermediate" or "hard"; unused for a single folder.
        split: "train", "val", "test" or "all".

    Raises:
        FileNotFoundError: No such folder, or an image that the metadata names is missing.
        ValueError: An unknown split or difficulty, metadata that is no such table, or an image that is named twice.
    """

    def __init__(self, root: str | Path, resolution: int = 32, difficulty: str = "hard", split: str = "train") -> None:
        if split not in (*SPLITS, "all") or difficulty not in DIFFICULTIES:
            raise ValueError(
                f"expected split in {(*SPLITS, 'all')} and difficulty in {tuple(DIFFICULTIES)}, "
                f"got {split=} {difficulty=}"
            )
        self.folder = find_folder(Path(root), resolution, difficulty)
        samples = _read_samples(self.folder)
        self.samples = samples if split == "all" else [samples[i] for i in _split_indices(len(samples))[split]]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Read one image.

        Raises:
            ValueError: A file that is no image, named.
        """
        path, label = self.samples[index]
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L"))
        except OSError as error:
            raise ValueError(f"cannot read {path}: {error}; generate or copy it again") from error
        return to_model_input(pixels, 1, (0.5,), (0.5,)), torch.tensor(label)


def find_folder(root: Path, resolution: int, difficulty: str) -> Path:
    """The folder with ``imgs`` and ``metadata``, preferring the inner copy of the release."""
    inside = Path(f"pathfinder{resolution}") / DIFFICULTIES[difficulty]
    for folder in [root, *(root / nest / inside for nest in ("lra_release/lra_release", "lra_release", "."))]:
        if (folder / "imgs").is_dir() and (folder / "metadata").is_dir():
            return folder
    raise FileNotFoundError(
        f"expected imgs/ and metadata/ in {root} or in {inside} below it, found neither; "
        "write a set with `castvision make-pathfinder`, or give the folder where lra_release was unpacked"
    )


def read_metadata(path: Path) -> list[list[str]]:
    """Rows of one metadata file, text or array.

    Raises:
        ValueError: Neither, or a row without eleven columns.
    """
    content = path.read_bytes()
    if content.startswith(b"\x93NUMPY"):
        table = np.load(io.BytesIO(content), allow_pickle=False)
        rows = [[str(cell) for cell in np.atleast_1d(row)] for row in table]
        rows = [row[0].split() if len(row) == 1 else row for row in rows]
    else:
        try:
            rows = [line.split(" ") for line in content.decode().splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise ValueError(f"expected a text table or a numpy array, got other bytes in {path}") from None
    for row in rows:
        if len(row) < _NUM_COLUMNS or row[3] not in ("0", "1"):
            raise ValueError(f"expected {_NUM_COLUMNS} columns with label 0 or 1 in {path}, got {' '.join(row)!r}")
    return rows


def _read_samples(folder: Path) -> list[tuple[Path, int]]:
    files = [f for f in (folder / "metadata").glob("*.npy") if f.stem.isdigit()]
    if not files:
        raise FileNotFoundError(f"expected metadata/<number>.npy in {folder}, found none; the set is incomplete")
    samples = []
    named_by: dict[Path, Path] = {}
    for file in sorted(files, key=lambda f: int(f.stem)):
        for row in read_metadata(file):
            named = Path(row[0], row[1])
            if named.is_absolute() or ".." in named.parts:
                raise ValueError(f"expected images inside {folder}, got {str(named)!r} in {file}; remove that line")
            path = folder / named
            if not path.exists():
                raise FileNotFoundError(f"{file} names {path}, which is missing; the set is incomplete")
            if path in named_by:
                raise ValueError(
                    f"expected each image once, got {path} in {named_by[path]} and {file}: it would fall into two "
                    "splits; generate or unpack the set again"
                )
            named_by[path] = file
            if path.stat().st_size:
                samples.append((path, int(row[3])))
    return samples


def _split_indices(count: int) -> dict[str, list[int]]:
    """S4's split: val and test are int(0.1 count) each."""
    held_out = int(0.1 * count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(42)).tolist()
    train = count - 2 * held_out
    return {"train": order[:train], "val": order[train : train + held_out], "test": order[train + held_out :]}


class LRAImage(Dataset[tuple[Tensor, Tensor]]):
    """Items (image (1, 32, 32) float32, about zero mean and unit spread; label () int64).

    Args:
        root: Folder that holds ``cifar-10-batches-py``, as torchvision unpacks it.
        split: "train", "val" or "test".
        download: Let torchvision download what is missing.

    Raises:
        ValueError: An unknown split.
        RuntimeError: torchvision finds no data set there, or one with other checksums.
    """

    source: type[CIFAR10] = CIFAR10

    def __init__(self, root: str | Path, split: str = "train", download: bool = False) -> None:
        if split not in SPLITS:
            raise ValueError(f"expected split 'train', 'val' or 'test', got {split=}")
        self.images = self.source(str(root), train=split != "test", download=download)
        count = len(self.images)
        first = count * 9 // 10
        self.indices = {"train": range(first), "val": range(first, count), "test": range(count)}[split]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """One image and its class."""
        image, label = self.images[self.indices[index]]
        return to_model_input(np.asarray(image.convert("L")), 1, (MEAN,), (STD,)), torch.tensor(label)
