"""What `read_image` does with files that are absurd, rare or not files at all."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib

import numpy as np
import PIL
import pytest
from packaging.version import Version
from PIL import Image

from castvision.data.reading.whole import read_image
from castvision.data.transforms.model_input import to_model_input
from tests.data.image_files import RGB8, encoded, put

RNG = np.random.default_rng(0)
TURNS = {
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
              for kind, data in chunks]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff_header(height: int, width: int, samples: int, bits: int) -> bytes:
    """A TIFF that claims a size and holds no pixels."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: samples, 278: height, 279: 100}
    entries = b"".join(struct.pack("<HHII", code, 4, 1, value) for code, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "tifffile 16"])
def test_orientation(tmp_path, kind, orientation):
    pixels = RGB8
    if kind == "tifffile 16":
        pixels = RGB8.astype(np.uint16) * 257
        data = encoded(pixels, "tifffile", photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    else:
        options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
        data = encoded(pixels, kind, exif=with_orientation(orientation), **options)
    result = read_image(put(tmp_path, data))
    expected = TURNS[orientation](pixels)
    assert result.shape == expected.shape and result.flags.c_contiguous
    assert np.abs(result.astype(int) - expected).max() <= (3 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [0, 9, 60000])
def test_an_orientation_that_means_nothing_is_ignored(tmp_path, orientation):
    path = put(tmp_path, encoded(RGB8, "PNG", exif=with_orientation(orientation)))
    np.testing.assert_array_equal(read_image(path), RGB8)


@pytest.mark.parametrize(
    "block", [b"", b"II", b"MM\0*\0\0\0\x08", b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\x05\0\x12"]
)
def test_a_damaged_exif_block_does_not_cost_the_picture(tmp_path, block):
    data = encoded(RGB8, "JPEG")
    exif = b"Exif\0\0" + block
    path = put(tmp_path, data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(exif)) + exif + data[2:])
    np.testing.assert_array_equal(read_image(path), read_image(put(tmp_path, data, "b.img")))


# ---------------------------------------------------------------- palettes, transparency, frames


def test_palette_with_several_opacities(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([100, 0, 200, 10, 20, 30, 7, 8, 9])
    image.save(tmp_path / "a.png", transparency=bytes([51, 255, 0]))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[[224, 204, 244], [10, 20, 30], [255, 255, 255]]])
    kept = read_image(tmp_path / "a.png", alpha="keep")
    np.testing.assert_array_equal(kept[..., 3], [[51, 255, 0]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", palette="index")[..., 0], [[0, 1, 2]])


@pytest.mark.parametrize(("bits", "kind"), [(8, "u1"), (16, ">u2")])
@pytest.mark.parametrize(("colour_type", "key"), [(0, (3,)), (2, (3, 4, 5))])
def test_a_colour_that_stands_for_transparent(tmp_path, bits, kind, colour_type, key):
    pixels = np.array([[[*key], [9] * len(key)]], kind)
    data = png(2, 1, bits, colour_type, b"\0" + pixels.tobytes(), (b"tRNS", struct.pack(f">{len(key)}H", *key)))
    top = 2**bits - 1
    result = read_image(put(tmp_path, data), alpha="keep")
    np.testing.assert_array_equal(result, [[[*key, 0], [9] * len(key) + [top]]])
    assert result.dtype == np.dtype(f"u{bits // 8}")
    np.testing.assert_array_equal(read_image(put(tmp_path, data))[0, 0], [top] * len(key))


def test_16_bit_grey_with_alpha(tmp_path):
    pixels = np.array([[[1000, 65535], [1000, 0], [0, 13107]]], ">u2")
    path = put(tmp_path, png(3, 1, 16, 4, b"\0" + pixels.tobytes()))
    np.testing.assert_array_equal(read_image(path)[..., 0], [[1000, 65535, 52428]])
    np.testing.assert_array_equal(read_image(path, alpha="keep"), pixels.astype(np.uint16))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animation_gives_its_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    frames[0].save(tmp_path / "a.img", kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / "a.img") as image:
        assert image.n_frames == 2
    np.testing.assert_array_equal(read_image(tmp_path / "a.img"), np.full((4, 6, 3), (255, 0, 0)))


def test_pages_with_palettes_and_bilevel_pages(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.save(tmp_path / "p.tif", save_all=True, append_images=[image])
    np.testing.assert_array_equal(read_image(tmp_path / "p.tif", page=1)[0], [[10, 20, 30], [200, 100, 0]])
    np.testing.assert_array_equal(read_image(tmp_path / "p.tif", page=1, palette="index")[0, :, 0], [0, 1])
    with pytest.raises(ValueError, match=r"p\.tif.*2 pages with palettes; name one"):
        read_image(tmp_path / "p.tif")
    bilevel = Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1")
    bilevel.save(tmp_path / "b.tif", save_all=True, append_images=[bilevel])
    result = read_image(tmp_path / "b.tif", page=0)
    assert result.dtype == np.uint8 and result[0, :, 0].tolist() == [0, 255, 255]
    assert read_image(tmp_path / "b.tif", page=0, palette="index")[0, :, 0].tolist() == [0, 1, 1]


def test_colours_that_would_be_taken_for_others_are_refused(tmp_path):
    Image.fromarray(RGB8).convert("LAB").save(tmp_path / "lab.tif")
    with pytest.raises(ValueError, match=r"lab\.tif.*CIELAB.*save it as RGB"):
        read_image(tmp_path / "lab.tif")
    ycbcr = Image.fromarray(RGB8).convert("YCbCr")
    ycbcr.save(tmp_path / "y.tif")
    if Version(PIL.__version__) >= Version("13"):
        assert np.abs(read_image(tmp_path / "y.tif").astype(int) - RGB8).max() <= 3
    else:  # older Pillow does not read what it writes
        with pytest.raises(ValueError, match=r"y\.tif.*truncated"):
            read_image(tmp_path / "y.tif")
    ycbcr.save(tmp_path / "y.tif", save_all=True, append_images=[ycbcr])
    with pytest.raises(ValueError, match=r"y\.tif.*YCBCR.*save it as RGB"):
        read_image(tmp_path / "y.tif", page=0)


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (100_000, 10), (10, 100_000)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "tifffile"])
def test_shapes_at_the_edge(tmp_path, size, kind):
    pixels = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    options = {"photometric": "rgb"} if kind == "tifffile" else {}
    path = put(tmp_path, encoded(pixels, kind, **options))
    np.testing.assert_array_equal(read_image(path), pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_one_pixel_reaches_a_model(tmp_path, kind):
    path = put(tmp_path, encoded(np.full((1, 1, 3), 255, np.uint8), kind))
    tensor = to_model_input(read_image(path), 3, [0.5], [0.5], size=(8, 8))
    assert tensor.shape == (3, 8, 8) and (tensor - 1).abs().max() < 0.05


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png(60_000, 60_000, 8, 2, b""), r"536,870,912 pixels.*60000 x 60000"),
        (b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + b"," + bytes(4)
         + struct.pack("<HHBB", 60_000, 60_000, 0, 2) + b"\0;", r"536,870,912 pixels.*60000 x 60000"),
        (tiff_header(60_000, 60_000, 1, 8), r"536,870,912 pixels.*60000 x 60000"),
        (tiff_header(20_000, 20_000, 64, 16), r"4,294,967,296 bytes.*20000, 20000, 64.*by windows"),
        (tiff_header(0, 5, 1, 16), "at least one pixel, got 0 x 5"),
    ],
    ids=["PNG", "GIF", "TIFF", "TIFF with 64 channels", "TIFF with nothing"],
)  # fmt: skip
def test_what_a_header_claims_is_checked_before_memory_is_taken(tmp_path, data, message):
    path = put(tmp_path, data)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"a\.img.*{message}"):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_a_file_larger_than_memory_is_not_loaded_to_be_refused(tmp_path):
    with (tmp_path / "slide.tif").open("wb") as file:
        file.truncate((1 << 32) + 1)  # sparse: takes no space
    with pytest.raises(ValueError, match=r"slide\.tif.*at most 4,294,967,296 bytes, got 4,294,967,297.*open_image"):
        read_image(tmp_path / "slide.tif")


def test_a_tiff_beyond_pillows_own_limit_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr("castvision.data.reading.whole._LARGE", 100)
    for kind in ("TIFF", "PNG"):
        np.testing.assert_array_equal(read_image(put(tmp_path, encoded(RGB8, kind))), RGB8)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_composing_over_white_by_bands_changes_nothing(tmp_path, monkeypatch):
    path = put(tmp_path, encoded(RNG.integers(0, 256, (24, 20, 4), dtype=np.uint8), "PNG"))
    whole = read_image(path)
    monkeypatch.setattr("castvision.data.reading.pixels._BAND", 7 * 20 * 4)
    np.testing.assert_array_equal(read_image(path), whole)


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_and_infinity_stay_in_the_pixels_and_leave_the_input_finite(tmp_path, dtype):
    pixels = np.array([[0.5, np.nan], [np.inf, 1.0]], dtype)
    result = read_image(put(tmp_path, encoded(pixels, "tifffile")))
    np.testing.assert_array_equal(result[..., 0], pixels)
    assert result.dtype == dtype
    tensor = to_model_input(result, 1, [0.0], [1.0])
    np.testing.assert_allclose(tensor[0], [[0.5, 0], [0, 1]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_without_a_finite_pixel_becomes_zero(value):
    assert (to_model_input(np.full((4, 4), value, np.float32), 1, [0.0], [1.0]) == 0).all()


# ---------------------------------------------------------------- not files, not readable, not images


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_empty_and_text(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name}.*empty \(0 bytes\)"):
        read_image(put(tmp_path, b"", name))
    with pytest.raises(ValueError, match=rf"{name}.*expected one of PNG, JPEG.*<html>"):
        read_image(put(tmp_path, b"<html>404 Not Found</html>", name))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"got a folder or device.*pipe\.png"):
        read_image(tmp_path / "pipe.png")


def test_folders_and_broken_links(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"got a folder or device.*folder\.png"):
        read_image(tmp_path / "folder.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "round.png").symlink_to(tmp_path / "round.png")
    for name in ("link.png", "round.png"):
        with pytest.raises(FileNotFoundError, match=name):
            read_image(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="no user ids here")
def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    path = put(tmp_path, encoded(RGB8, "PNG"))
    path.chmod(0)
    monkeypatch.chdir(tmp_path)  # so that an unprivileged user reaches it, whoever owns the folders above
    user = os.geteuid()
    if user == 0:  # root reads everything
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=r"a\.img"):
            read_image("a.img")
    finally:
        if user == 0:
            os.seteuid(0)
