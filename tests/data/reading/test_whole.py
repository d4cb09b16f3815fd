from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from castvision.data import open_image
from castvision.data.reading.whole import read_image

skimage = pytest.importorskip("skimage")
PHOTOS = Path(skimage.__file__).parent / "data"
RNG = np.random.default_rng(0)
RGB8 = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (5, 7, 3), dtype=np.uint16)
GREY16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def png16(pixels: np.ndarray, colour_type: int) -> bytes:
    """A 16-bit PNG written by hand: Pillow cannot write 16-bit colour."""
    height, width = pixels.shape[:2]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


# ---------------------------------------------------------------- what is read is what was stored


def test_png_8_bit_rgb_is_exact(tmp_path):
    result = read_image(saved(tmp_path / "a.png", Image.fromarray(RGB8)))
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, RGB8)


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3)])
def test_png_16_bit_is_exact(tmp_path, colour_type, channels):
    pixels = RNG.integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png16(pixels, colour_type))
    result = read_image(tmp_path / "a.png")
    assert result.dtype == np.uint16
    np.testing.assert_array_equal(result, pixels)


@pytest.mark.parametrize(("colour_type", "channels"), [(4, 2), (6, 4)])
def test_png_16_bit_with_alpha(tmp_path, colour_type, channels):
    pixels = RNG.integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png16(pixels, colour_type))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", alpha="keep"), pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", alpha="drop"), pixels[..., :-1])
    opacity = pixels[..., -1:] / 65535
    expected = np.rint(pixels[..., :-1] * opacity + 65535 * (1 - opacity))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected.astype(np.uint16))


def test_grey_png_has_one_channel(tmp_path):
    result = read_image(saved(tmp_path / "a.png", Image.fromarray(RGB8[..., 0])))
    np.testing.assert_array_equal(result, RGB8[..., :1])


def test_bilevel_png_becomes_0_and_255(tmp_path):
    mask = RGB8[..., 0] > 128
    result = read_image(saved(tmp_path / "a.png", Image.fromarray(mask)))
    np.testing.assert_array_equal(result, np.where(mask, 255, 0)[..., None])


def test_palette_becomes_colours_not_indices(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    result = read_image(saved(tmp_path / "a.png", image))
    np.testing.assert_array_equal(result, [[[10, 20, 30], [200, 100, 0]], [[200, 100, 0], [10, 20, 30]]])


def test_transparent_palette_entry_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    path = saved(tmp_path / "a.png", image, transparency=1)
    np.testing.assert_array_equal(read_image(path), [[[10, 20, 30], [255, 255, 255]]])


def test_rgba_hand_computed(tmp_path):
    pixels = np.array([[[100, 0, 200, 255], [100, 0, 200, 0], [100, 0, 200, 51]]], dtype=np.uint8)
    result = read_image(saved(tmp_path / "a.png", Image.fromarray(pixels)))
    np.testing.assert_array_equal(result, [[[100, 0, 200], [255, 255, 255], [224, 204, 244]]])


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    result = read_image(path)
    assert result.shape == (8, 8, 3)
    assert np.abs(result.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    image = Image.fromarray(RGB8)
    exif = Image.Exif()
    exif[274] = orientation
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    expected = np.asarray(image.transpose(turn[orientation]) if orientation > 1 else image)
    path = saved(tmp_path / "a.png", image, exif=exif)
    np.testing.assert_array_equal(read_image(path), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_orientation(tmp_path, dtype):
    pixels = RGB16.astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(274, 3, 1, 6, True)])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.rot90(pixels, -1))


@pytest.mark.parametrize("pixels", [RGB8, RGB16, GREY16, RGB8[..., 0]], ids=["rgb8", "rgb16", "grey16", "grey8"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_is_exact(tmp_path, pixels, compression):
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, compression=compression)
    result = read_image(tmp_path / "a.tif")
    assert result.dtype == pixels.dtype
    np.testing.assert_array_equal(result, pixels if pixels.ndim == 3 else pixels[..., None])


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "packbits"])
def test_tiff_compressions_of_photographs(tmp_path, compression):
    photo = Image.open(PHOTOS / "coffee.png")
    result = read_image(saved(tmp_path / "a.tif", photo, compression=compression))
    assert np.abs(result.astype(int) - np.asarray(photo)).mean() < (5 if compression == "jpeg" else 1e-9)


def test_tiff_16_bit_grey_lzw(tmp_path):
    result = read_image(saved(tmp_path / "a.tif", Image.fromarray(GREY16), compression="tiff_lzw"))
    np.testing.assert_array_equal(result, GREY16[..., None])


@pytest.mark.parametrize("layout", ["pages", "contig", "separate", "imagej"])
def test_tiff_with_five_channels(tmp_path, layout):
    bands = RNG.integers(0, 65536, (8, 9, 5), dtype=np.uint16)
    planes = np.ascontiguousarray(bands.transpose(2, 0, 1))
    options = {
        "pages": (planes, {"photometric": "minisblack"}),
        "contig": (bands, {"photometric": "minisblack", "planarconfig": "contig"}),
        "separate": (planes, {"photometric": "minisblack", "planarconfig": "separate"}),
        "imagej": (planes, {"imagej": True, "metadata": {"axes": "CYX"}}),
    }
    data, keywords = options[layout]
    tifffile.imwrite(tmp_path / "a.tif", data, **keywords)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), bands)


def test_tiff_float_and_white_is_zero(tmp_path):
    values = RNG.normal(size=(4, 6)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), values[..., None])
    tifffile.imwrite(tmp_path / "b.tif", GREY16, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "b.tif"), 65535 - GREY16[..., None])


def test_stack_needs_a_page(tmp_path):
    stack = RNG.integers(0, 65536, (3, 8, 9), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(ValueError, match=r"a\.tif.*page=0\.\.2"):
        read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", page=1), stack[1][..., None])
    with pytest.raises(ValueError, match=r"page in 0\.\.2"):
        read_image(tmp_path / "a.tif", page=3)


@pytest.mark.parametrize("name", ["astronaut.png", "coffee.png", "chelsea.png", "retina.jpg", "cell.png", "horse.png"])
def test_photographs(name):
    with Image.open(PHOTOS / name) as photo:
        size, mode = photo.size, photo.mode
    result = read_image(PHOTOS / name)
    assert result.shape == (size[1], size[0], 1 if mode == "L" else 3)
    assert result.dtype == np.uint8


def test_content_decides_not_the_name(tmp_path):
    path = tmp_path / "a.jpg"
    saved(tmp_path / "a.png", Image.fromarray(RGB8)).rename(path)
    np.testing.assert_array_equal(read_image(path), RGB8)


def test_a_200_megapixel_header_is_not_refused_and_the_limit_is_restored(tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    path = saved(tmp_path / "a.png", Image.new("1", (16384, 12288)))
    assert read_image(path).shape == (12288, 16384, 1)
    assert Image.MAX_IMAGE_PIXELS == limit


# ---------------------------------------------------------------- bad files: ValueError that names the file


def truncated(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def encoded(kind: str) -> bytes:
    noise = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if kind == "png16":
        return png16(RNG.integers(0, 65536, (64, 64, 3), dtype=np.uint16), 2)
    buffer = io.BytesIO()
    if kind in ("tiff16", "tiff16z"):
        grey = RNG.integers(0, 65536, (64, 64), dtype=np.uint16)
        tifffile.imwrite(buffer, grey, compression="zlib" if kind == "tiff16z" else None)
    else:
        Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "png16", "tiff16", "tiff16z", "WEBP", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.998])
def test_truncated(tmp_path, kind, share):
    path = tmp_path / "half.img"
    path.write_bytes(truncated(encoded(kind), share))
    with pytest.raises(ValueError, match=r"half\.img") as error:
        read_image(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["PNG", "png16", "tiff16z"])
def test_corrupted_in_the_middle(tmp_path, kind):
    data = bytearray(encoded(kind))
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    (tmp_path / "bad.png").write_bytes(data)
    with pytest.raises(ValueError, match=r"bad\.png"):
        read_image(tmp_path / "bad.png")


def test_empty_text_and_missing(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.png.*empty \(0 bytes\)"):
        read_image(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("this is no picture\n")
    with pytest.raises(ValueError, match=r"text\.png.*expected one of PNG, JPEG.*this is no p"):
        read_image(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match="folder"):
        read_image(tmp_path)


def test_wrong_arguments(tmp_path):
    path = saved(tmp_path / "a.png", Image.fromarray(RGB8))
    with pytest.raises(ValueError, match="alpha="):
        read_image(path, alpha="black")
    with pytest.raises(ValueError, match="only TIFF files have pages"):
        read_image(path, page=1)


def test_too_many_pixels_is_refused_before_decoding(tmp_path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end = (
        b"\0\0\0\0IDAT"
        + struct.pack(">I", zlib.crc32(b"IDAT"))
        + b"\0\0\0\0IEND"
        + struct.pack(">I", zlib.crc32(b"IEND"))
    )
    (tmp_path / "bomb.png").write_bytes(data + end)
    with pytest.raises(ValueError, match=r"bomb\.png.*536,870,912 pixels.*60000 x 60000"):
        read_image(tmp_path / "bomb.png")


# ---------------------------------------------------------------- pixels to a model's input


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_value_of_grey_pngs_of_few_bits(tmp_path, bits):
    stored = RNG.integers(0, min(2**bits, 4), (6, 8), dtype=np.uint8)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    wide = np.unpackbits(stored[..., None], axis=-1)[..., 8 - bits :].reshape(6, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in np.packbits(wide, axis=-1))
    header, key = struct.pack(">IIBBBBB", 8, 6, bits, 0, 0, 0, 0), struct.pack(">H", 1)
    parts = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    with open_image(tmp_path / "a.png") as reader:
        missing = np.ma.getmaskarray(reader.read_masked(0, 0, 6, 8))[..., 0]
    assert np.array_equal(missing, stored == 1)


def test_planes_of_grey_and_opacity(tmp_path):
    """Pillow, which reads what takes a codec that is not installed, takes such planes for pixels of one plane."""
    stored = RNG.integers(0, 256, (5, 7, 2), dtype=np.uint8)
    planes = np.moveaxis(stored, -1, 0)
    kind = {"photometric": "minisblack", "planarconfig": "separate", "extrasamples": ["unassalpha"]}
    tifffile.imwrite(tmp_path / "a.tif", planes, **kind)
    assert np.array_equal(read_image(tmp_path / "a.tif", alpha="keep"), stored)
