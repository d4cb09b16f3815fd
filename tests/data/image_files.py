"""What the tests of image files share: a small photograph, and ways to put it into a file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo

RGB8 = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    if kind == "tifffile":
        tifffile.imwrite(buffer, pixels, **options)
    else:
        image = Image.fromarray(pixels)
        (image if mode is None else image.convert(mode)).save(buffer, kind, **options)
    return buffer.getvalue()


def put(folder: Path, data: bytes, name: str = "a.img") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def save_apart(image: Image.Image, path: Path) -> None:
    """Save as PNG with the path in it: the same picture at another place is another file, not one in two splits."""
    about = PngInfo()
    about.add_text("path", str(path))
    image.save(path, "PNG", pnginfo=about)
