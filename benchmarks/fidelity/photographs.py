"""Images to measure on: scikit-image's, a folder of the user's, and how an image is brought to a size.

Nothing is cropped and nothing enlarged by more than a tenth: an image of size s has as many patches as a square of s
pixels a side, in its own shape, and small images are left out at large sizes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SHIPPED = ("astronaut.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg", "rocket.jpg")
"""Colour pictures that come inside scikit-image's package."""

ENLARGED_AT_MOST = 1.1
_KINDS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")


def find_photographs(folder: Path | None) -> list[Path]:
    """Files of the folder, by name; without one, those inside scikit-image.

    Raises:
        FileNotFoundError: Nothing there.
    """
    if folder is not None:
        found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _KINDS) if folder.is_dir() else []
        if not found:
            raise FileNotFoundError(f"expected a folder with images ({', '.join(_KINDS)}), got {str(folder)!r}")
        return found
    try:
        import skimage
    except ImportError as error:
        raise FileNotFoundError("expected scikit-image or --images, found neither; pip install scikit-image") from error
    data = Path(skimage.__file__).parent / "data"
    return [path for name in SHIPPED if (path := data / name).is_file()]


def grid_for(width: int, height: int, size: int, patch: int) -> tuple[int, int] | None:
    """Rows and columns of patches of an image at a size; None where it would be enlarged by more than a tenth."""
    area = float(size * size)
    if area > width * height * ENLARGED_AT_MOST**2:
        return None
    rows = max(1, round((area * height / width) ** 0.5 / patch))
    return rows, max(1, round(area / patch**2 / rows))


def grid_of(path: Path, size: int, patch: int) -> tuple[int, int] | None:
    """As :func:`grid_for`, of a file."""
    with Image.open(path) as image:
        return grid_for(*image.size, size, patch)


def load(path: Path, grid: tuple[int, int], patch: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """An image of rows x cols patches, normalised, (3, rows * patch, cols * patch)."""
    with Image.open(path) as opened:
        image = opened.convert("RGB").resize((grid[1] * patch, grid[0] * patch), Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
