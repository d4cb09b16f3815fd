"""Small files with known pixels."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def palette_png(tmp_path):
    """A palette PNG whose indices 0, 1, 2, 255 have colours of their own."""

    def write(name: str = "mask.png", indices=((0, 1), (2, 255))) -> str:
        image = Image.fromarray(np.array(indices, dtype=np.uint8), mode=None).convert("P")
        image.putpalette([value for place in range(256) for value in (255 - place, place, 77)])
        image.putdata(np.array(indices, dtype=np.uint8).ravel().tolist())
        image.save(tmp_path / name)
        return str(tmp_path / name)

    return write


def write_bad_images(folder) -> dict[str, str]:
    """Files no image can be made of, with a part of the message each must cause."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    (folder / "whole.jpg").unlink()
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not an image at all")
    return {
        "truncated.jpg": "truncated",
        "empty.png": r"empty \(0 bytes\)",
        "text.png": "expected one of PNG",
    }
