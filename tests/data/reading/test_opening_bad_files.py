"""Files that are damaged, absurd or too large: a message that names them, or windows all the same."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from castvision.data import open_image

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (200, 300, 3), np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.svs", "a.jp2", "a.zarr"])
def test_empty_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name}.*empty \(0 bytes\)"):
        open_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_text_with_the_name_of_a_picture(tmp_path, name):
    (tmp_path / name).write_text("this is no picture\n")
    with pytest.raises(ValueError, match=rf"{name}.*this is no p"):
        open_image(tmp_path / name)


def test_nothing_there_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.tif"):
        open_image(tmp_path / "gone.tif")
    with pytest.raises(ValueError, match="folder"):
        open_image(tmp_path)
    with pytest.raises(ValueError, match="alpha="):
        open_image(tmp_path / "gone.tif", alpha="black")


@pytest.mark.parametrize("share", [0.0001, 0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_truncated_tiffs(tmp_path, share, compression, tile):
    path = tmp_path / "half.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", compression=compression, tile=tile)
    data = path.read_bytes()
    path.write_bytes(data[: max(int(len(data) * share), 4)])
    with pytest.raises(ValueError, match=r"half\.tif") as error:
        open_image(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_truncated_pictures(tmp_path, suffix):
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(NOISE).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"half\.{suffix}"):
        open_image(path)


def test_a_damaged_tile_is_named_when_it_is_read(tmp_path):
    path = tmp_path / "bad.tif"
    tifffile.imwrite(path, NOISE, photometric="rgb", compression="zlib", tile=(64, 64))
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[7]
    data = bytearray(path.read_bytes())
    data[offset : offset + 64] = bytes(64)
    path.write_bytes(data)
    with open_image(path) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 64, 64), NOISE[:64, :64])
        with pytest.raises(ValueError, match=r"bad\.tif' at y=64, x=128, height=64, width=64, level=0"):
            reader.read(64, 128, 64, 64)
        np.testing.assert_array_equal(reader.read(128, 0, 64, 64), NOISE[128:192, :64])


@pytest.mark.parametrize("size", [(10, 100_000), (100_000, 10), (1, 1), (1, 7)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_odd_sizes(tmp_path, size, suffix):
    pixels = RNG.integers(0, 256, size, np.uint8)
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, pixels, tile=(16, 16), compression="zlib")
    else:
        Image.fromarray(pixels).save(path)
    with open_image(path) as reader:
        assert (reader.height, reader.width) == size
        np.testing.assert_array_equal(reader.read(size[0] - 1, 0, 1, size[1])[..., 0], pixels[-1:])


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    for name in ("a.jpg", "a.tif"):
        with open_image(tmp_path / name) as reader:
            assert np.abs(reader.read(0, 0, 8, 8).astype(int) - [255, 0, 0]).max() <= 3


def test_a_bomb_is_refused_as_png_and_read_by_windows_as_tiff(tmp_path):
    size = 60_000
    header = b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))]
    chunks += [b"\0\0\0\0" + kind + struct.pack(">I", zlib.crc32(kind)) for kind in (b"IDAT", b"IEND")]
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with pytest.raises(ValueError, match=r"bomb\.png.*at most 536,870,912 pixels.*cut it into tiles"):
        open_image(tmp_path / "bomb.png")
    tiles = (-(-size // 2048)) ** 2
    first = np.full((2048, 2048, 3), 7, np.uint8)
    tifffile.imwrite(tmp_path / "bomb.tif", (first if not number else None for number in range(tiles)),
                     shape=(size, size, 3), dtype=np.uint8, photometric="rgb", tile=(2048, 2048), compression="zlib",
                     bigtiff=True)  # fmt: skip
    with open_image(tmp_path / "bomb.tif") as reader:
        assert reader.height == size
        assert (reader.read(0, 0, 10, 10) == 7).all()
        assert (reader.read(size - 10, size - 10, 10, 10) == 0).all()


def test_one_strip_that_would_fill_the_memory_is_refused(tmp_path):
    path = tmp_path / "strip.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), compression="zlib", rowsperstrip=64, metadata=None)
    with tifffile.TiffFile(path, mode="r+") as tiff:
        for code in (256, 257, 278):
            tiff.pages[0].tags[code].overwrite(60_000, dtype="I")
    with pytest.raises(ValueError, match=r"strip\.tif.*536,870,912 pixels.*write the image again in tiles"):
        open_image(path)


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_tiff_that_does_not_name_all_its_segments_is_refused(tmp_path, tile):
    path = tmp_path / "a.tif"
    layout = {"rowsperstrip": 8} if tile is None else {"tile": tile}
    tifffile.imwrite(path, np.zeros((48, 80), np.uint8), compression="zlib", metadata=None, **layout)
    open_image(path).close()
    with tifffile.TiffFile(path, mode="r+") as tiff:
        tiff.pages[0].tags["ImageLength"].overwrite(2**32 - 1, dtype="I")
    named, wanted = (6, "536,870,912") if tile is None else (15, "1,342,177,280")
    with pytest.raises(ValueError, match=rf"a\.tif.*the TIFF names {named} of its {wanted} tiles or strips"):
        open_image(path)
