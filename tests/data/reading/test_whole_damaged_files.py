"""What `read_image` does with files that are cut or changed: no pixels, or an error that names the file."""

from __future__ import annotations

import random
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from castvision.data.reading.whole import read_image
from tests.data.image_files import RGB8, encoded, put

RNG = np.random.default_rng(0)


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    return exif


def jpeg_with_thumbnail(**options) -> bytes:
    """The thumbnail has markers of its own, an end marker too."""
    data, small = encoded(RGB8, "JPEG", **options), encoded(RGB8[:8, :8], "JPEG")
    return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(small)) + small + data[2:]


JPEGS = {
    "baseline": encoded(RGB8, "JPEG"),
    "progressive": encoded(RGB8, "JPEG", progressive=True),
    "restart markers": encoded(RGB8, "JPEG", restart_marker_blocks=1),
    "thumbnail": jpeg_with_thumbnail(),
    "progressive with thumbnail": jpeg_with_thumbnail(progressive=True),
    "CMYK": encoded(RGB8, "JPEG", mode="CMYK"),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_cut_at_every_marker_and_between(tmp_path, kind):
    data = JPEGS[kind]
    read_image(put(tmp_path, data))
    markers = {place + more for place in range(len(data)) if data[place] == 0xFF for more in (0, 1, 2, 3)}
    for length in sorted({n for n in markers | set(range(3, len(data), 37)) if 3 <= n < len(data) - 1}):
        with pytest.raises(ValueError, match=r"a\.img.*truncated"):
            read_image(put(tmp_path, data[:length]))


@pytest.mark.parametrize("kind", JPEGS)
@pytest.mark.parametrize("tail", [b"ftyp\xff\xda of a film", encoded(RGB8, "JPEG")[:-300], bytes(7), b"\xff\xff\xff"])
def test_what_follows_a_jpeg_is_ignored(tmp_path, kind, tail):
    """Phones append films, depth maps and second pictures."""
    whole = read_image(put(tmp_path, JPEGS[kind]))
    np.testing.assert_array_equal(read_image(put(tmp_path, JPEGS[kind] + tail)), whole)


def test_stereo_jpeg_gives_its_first_picture(tmp_path):
    first, second = Image.fromarray(RGB8), Image.fromarray(255 - RGB8)
    first.save(tmp_path / "a.mpo", "MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(read_image(tmp_path / "a.mpo"), read_image(put(tmp_path, JPEGS["baseline"])))


def test_cmyk_jpeg_of_adobe_is_stored_inverted(tmp_path):
    data = encoded(np.full((8, 8, 3), (200, 40, 90), np.uint8), "JPEG", mode="CMYK", quality=100)
    assert b"Adobe" in data
    result = read_image(put(tmp_path, data))
    assert result.shape == (8, 8, 3) and np.abs(result.astype(int) - [200, 40, 90]).max() <= 3


# ---------------------------------------------------------------- damage of every kind

SOUND = {
    "png": encoded(RGB8, "PNG", exif=turned()),
    "png16": cv2.imencode(".png", RGB8.astype(np.uint16) * 257)[1].tobytes(),
    "jpeg": JPEGS["thumbnail"],
    "gif": encoded(RGB8, "GIF", mode="P"),
    "bmp": encoded(RGB8, "BMP"),
    "webp": encoded(RGB8, "WEBP", lossless=True),
    "tiff": encoded(RGB8, "TIFF"),
    "tiff lzw": encoded(RGB8, "TIFF", compression="tiff_lzw"),
    "tiff 16": encoded(RGB8.astype(np.uint16), "tifffile", photometric="rgb", compression="zlib"),
    "tiff pages": encoded(RNG.integers(0, 65536, (3, 24, 20), dtype=np.uint16), "tifffile", photometric="minisblack"),
    "tiff tiles": encoded(RNG.normal(size=(48, 40)).astype(np.float32), "tifffile", tile=(16, 16)),
    "ome": encoded(RNG.integers(0, 65536, (3, 24, 20), dtype=np.uint16), "tifffile", ome=True,
                   metadata={"axes": "CYX"}),
}  # fmt: skip


def damage(data: bytes, chance: random.Random) -> bytes:
    """Cut, or a few bytes changed: most near the header, where they mean sizes and places."""
    if chance.random() < 0.2:
        return data[: chance.randrange(1, len(data))]
    broken = bytearray(data)
    for _ in range(chance.choice((1, 2, 3, 8))):
        place = chance.randrange(min(len(data), chance.choice((64, 400, len(data)))))
        broken[place] = chance.choice((0, 1, 255, chance.randrange(256), broken[place] ^ (1 << chance.randrange(8))))
    return bytes(broken)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", SOUND)
def test_damaged_bytes_give_pixels_or_a_value_error_that_names_the_file(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("castvision.data.reading.pixels.MAX_PIXELS", 1 << 20)  # so that a size gone wrong costs no time
    monkeypatch.setattr("castvision.data.reading.whole.MAX_BYTES", 1 << 22)
    chance = random.Random(0)
    refused = 0
    for _ in range(150):
        path = put(tmp_path, damage(SOUND[kind], chance))
        try:
            pixels = read_image(path)
        except ValueError as error:
            refused += 1
            assert "a.img" in str(error) and "\n" not in str(error)
        else:
            assert pixels.ndim == 3 and pixels.size > 0
    assert refused > 10
