"""Windows of TIFFs of every layout are the pixels that were written, and no more is decoded than they need."""

from __future__ import annotations

import os
import pickle
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from PIL import Image

from castvision.data import open_image
from castvision.data.reading import segments
from castvision.data.reading.pixels import is_empty
from castvision.data.reading.whole import read_image

RNG = np.random.default_rng(0)
WINDOWS = [(0, 0, 1, 1), (0, 0, 70, 91), (17, 30, 40, 33), (69, 90, 1, 1), (15, 31, 2, 2)]


def noise(height: int, width: int, channels: int, dtype) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RNG.normal(size=(height, width, channels)).astype(dtype)
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, (height, width, channels), dtype, endpoint=True)


def check_windows(path, expected: np.ndarray) -> None:
    with open_image(path) as reader:
        assert (reader.height, reader.width, reader.channels) == expected.shape
        assert reader.dtype == expected.dtype
        for y, x, height, width in WINDOWS:
            window = reader.read(y, x, height, width)
            assert window.dtype == expected.dtype and window.flags.c_contiguous and window.flags.writeable
            np.testing.assert_array_equal(window, expected[y : y + height, x : x + width])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
@pytest.mark.parametrize("layout", ["strips", "tiles", "one strip"])
@pytest.mark.parametrize("channels", [1, 3, 12])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_windows_of_every_layout(tmp_path, dtype, layout, channels, planar):
    pixels = noise(70, 91, channels, dtype)
    how = {"strips": {"rowsperstrip": 8}, "tiles": {"tile": (16, 32)}, "one strip": {}}[layout]
    for compression in (None, "zlib"):
        data = np.moveaxis(pixels, -1, 0) if planar == "separate" and channels > 1 else pixels
        how |= {"compression": compression, "planarconfig": planar if channels > 1 else None}
        tifffile.imwrite(tmp_path / "a.tif", data, photometric="minisblack", **how)
        check_windows(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("compression", ["lzw", "zstd", "deflate", "packbits", "jpeg2000", "webp"])
def test_windows_of_every_compression(tmp_path, compression):
    pytest.importorskip("imagecodecs")
    pixels = noise(70, 91, 3, "uint8")
    options = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    options |= {"compressionargs": {"reversible": True}} if compression == "jpeg2000" else {}
    predictor = compression in ("lzw", "zstd", "deflate")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(32, 32), compression=compression,
                     predictor=predictor, **options)  # fmt: skip
    check_windows(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
def test_byte_orders_and_bigtiff(tmp_path, byteorder, bigtiff):
    pixels = noise(70, 91, 2, "uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig", byteorder=byteorder,
                     bigtiff=bigtiff)  # fmt: skip
    check_windows(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("layout", ["pages", "imagej", "ome"])
def test_pages_are_channels(tmp_path, layout):
    pixels = noise(70, 91, 5, "uint16")
    how = {"pages": {}, "imagej": {"imagej": True, "metadata": {"axes": "CYX"}}, "ome": {"metadata": {"axes": "CYX"}}}
    name = "a.ome.tif" if layout == "ome" else "a.tif"
    tifffile.imwrite(tmp_path / name, np.moveaxis(pixels, -1, 0), photometric="minisblack", **how[layout])
    check_windows(tmp_path / name, pixels)


def test_64_channels(tmp_path):
    pixels = noise(70, 91, 64, "uint8")
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(pixels, -1, 0), photometric="minisblack", planarconfig="separate",
                     tile=(32, 32))  # fmt: skip
    check_windows(tmp_path / "a.tif", pixels)


@pytest.mark.parametrize("kind", ["palette", "palette16", "bilevel", "4 bit", "white is zero", "cmyk", "rgba", "jpeg"])
def test_colours_become_what_they_become_for_whole_images(tmp_path, kind):
    path = tmp_path / "a.tif"
    rgb = Image.fromarray(noise(70, 91, 3, "uint8"))
    grey = noise(70, 91, 1, "uint8")[..., 0]
    if kind == "palette":
        rgb.quantize(16).save(path)
    elif kind == "palette16":
        tifffile.imwrite(
            path, grey, photometric="palette", colormap=RNG.integers(0, 65536, (3, 256), np.uint16), tile=(16, 16)
        )
    elif kind == "bilevel":
        rgb.convert("1").save(path)
    elif kind == "4 bit":
        pytest.importorskip("imagecodecs")
        tifffile.imwrite(path, grey >> 4, bitspersample=4, photometric="minisblack", tile=(16, 16))
    elif kind == "white is zero":
        tifffile.imwrite(path, grey, photometric="miniswhite", tile=(16, 16))
    elif kind == "cmyk":
        tifffile.imwrite(path, noise(70, 91, 4, "uint16"), photometric="separated", tile=(16, 16))
    elif kind == "rgba":
        tifffile.imwrite(
            path, noise(70, 91, 4, "uint16"), photometric="rgb", extrasamples=["unassalpha"], tile=(16, 16)
        )
    else:
        pytest.importorskip("imagecodecs")
        smooth = np.asarray(rgb.resize((6, 5)).resize((91, 70)))
        tifffile.imwrite(path, smooth, photometric="rgb", compression="jpeg", tile=(32, 32))
    expected = read_image(path)
    if kind != "jpeg":
        return check_windows(path, expected)
    with open_image(path) as reader:
        assert np.abs(reader.read(0, 0, 70, 91).astype(int) - expected).max() <= 6  # two decoders


def test_a_palette_of_8_bits(tmp_path):
    """Some programs write colours up to 255 where the standard has 65535."""
    stored, colours = noise(70, 91, 1, "uint8")[..., 0], RNG.integers(0, 256, (3, 256)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="palette", colormap=colours)
    check_windows(tmp_path / "a.tif", colours.T[stored].astype(np.uint8))


def test_a_palette_with_opacity_beside_it(tmp_path):
    image = Image.fromarray(noise(70, 91, 4, "uint8")).convert("PA")
    alpha = np.asarray(image)[..., 1]
    image.save(tmp_path / "a.tif")
    check_windows(tmp_path / "a.tif", read_image(tmp_path / "a.tif"))
    with open_image(tmp_path / "a.tif") as reader:
        missing = np.ma.getmaskarray(reader.read_masked(0, 0, 70, 91))
        assert np.array_equal(missing[..., 0], alpha == 0)
    with open_image(tmp_path / "a.tif", alpha="keep") as reader:
        assert np.array_equal(reader.read(0, 0, 70, 91)[..., 3], alpha)


def test_opacity_is_no_light_where_white_is_zero(tmp_path):
    stored = noise(70, 91, 2, "uint8")
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", extrasamples=["unassalpha"])
    with open_image(tmp_path / "a.tif", alpha="keep") as reader:
        assert np.array_equal(reader.read(0, 0, 70, 91), np.dstack([255 - stored[..., 0], stored[..., 1]]))


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation(tmp_path, turn):
    stored = noise(70, 91, 3, "uint16")
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", tile=(16, 16), extratags=[(274, 3, 1, turn, True)])
    expected = read_image(tmp_path / "a.tif")
    with open_image(tmp_path / "a.tif") as reader:
        assert (reader.height, reader.width) == expected.shape[:2]
        np.testing.assert_array_equal(reader.read(3, 5, 60, 20), expected[3:63, 5:25])


@pytest.mark.parametrize("kind", ["subifds", "pages", "reduced pages", "ome", "svs"])
def test_pyramids(tmp_path, kind):
    full = noise(333, 257, 3, "uint8")
    sizes = [full, full[::2, ::2], full[::4, ::4]]
    path = tmp_path / ("a.ome.tif" if kind == "ome" else "a.svs" if kind == "svs" else "a.tif")
    options = {"photometric": "rgb", "tile": (64, 64)}
    with tifffile.TiffWriter(path, ome=kind == "ome") as writer:
        if kind in ("subifds", "ome"):
            writer.write(full, subifds=2, **options)
            for small in sizes[1:]:
                writer.write(small, subfiletype=1, **options)
        elif kind == "svs":
            text = "Aperio Image Library v11.2.1\n333x257 |AppMag = 20|MPP = 0.4990"
            writer.write(full, description=text, metadata=None, **options)
            writer.write(full[::8, ::8], description=text, metadata=None, photometric="rgb")
            writer.write(sizes[2], description=text, metadata=None, **options)
        else:
            for number, pixels in enumerate(sizes):
                writer.write(pixels, subfiletype=int(number > 0 and kind == "reduced pages"), **options)
    with open_image(path) as reader:
        expected = [sizes[0], sizes[2]] if kind == "svs" else sizes
        assert [(level.height, level.width) for level in reader.levels] == [size.shape[:2] for size in expected]
        assert [round(level.downsample) for level in reader.levels] == ([1, 4] if kind == "svs" else [1, 2, 4])
        for number, pixels in enumerate(expected):
            np.testing.assert_array_equal(reader.read(20, 10, 60, 50, number), pixels[20:80, 10:60])
        assert reader.mpp == (0.499 if kind == "svs" else None)


def test_a_reduced_copy_may_stand_first(tmp_path):
    full = noise(70, 91, 3, "uint8")
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for step in (5, 1, 2):
            writer.write(full[::step, ::step], photometric="rgb", subfiletype=int(step > 1), metadata=None)
    check_windows(tmp_path / "a.tif", full)
    assert np.array_equal(read_image(tmp_path / "a.tif"), full)
    with open_image(tmp_path / "a.tif") as reader:
        assert [(level.height, level.width) for level in reader.levels] == [(70, 91), (35, 46)]


def test_a_second_image_is_no_level(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(noise(64, 64, 1, "uint8")[..., 0])
        writer.write(noise(60, 20, 1, "uint8")[..., 0])
    with open_image(tmp_path / "a.tif") as reader:
        assert len(reader.levels) == 1
    with open_image(tmp_path / "a.tif", page=1) as reader:
        assert (reader.height, reader.width) == (60, 20)


def test_stacks_need_a_page(tmp_path):
    stack = noise(8, 9, 3, "uint16")
    tifffile.imwrite(tmp_path / "a.tif", np.moveaxis(stack, -1, 0), imagej=True, metadata={"axes": "ZYX"})
    with pytest.raises(ValueError, match=r"a\.tif.*page=0\.\.2"):
        open_image(tmp_path / "a.tif")
    with open_image(tmp_path / "a.tif", page=1) as reader:
        np.testing.assert_array_equal(reader.read(0, 0, 8, 9), stack[..., 1:2])


# ---------------------------------------------------------------- only what is needed


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """64 MB in 1,024 tiles of 64 kB."""
    path = tmp_path_factory.mktemp("large") / "large.tif"
    tile = noise(256, 256, 1, "uint8")[..., 0]

    def tiles():
        for number in range(1024):
            yield tile + np.uint8(number % 251)

    tifffile.imwrite(path, tiles(), shape=(8192, 8192), dtype=np.uint8, tile=(256, 256), compression="zlib")
    return path


def test_only_the_tiles_of_a_window_are_decoded_and_kept_within_the_bound(large, monkeypatch):
    decoded = []
    original = segments.decode_segment

    def count(page, data, index):
        decoded.append(index)
        return original(page, data, index)

    monkeypatch.setattr(segments, "decode_segment", count)
    with open_image(large, cache_bytes=4 << 16) as reader:
        assert decoded == [0]  # one on opening, to know that it can be done
        decoded.clear()
        reader.read(300, 300, 100, 100)
        assert decoded == [33]
        reader.read(256, 256, 256, 256)
        assert decoded == [33]  # still there
        reader.read(500, 500, 100, 100)
        assert sorted(decoded[1:]) == [34, 65, 66]
        for number in range(20):
            reader.read(256 * number, 4096, 256, 256)
        assert reader._cache.size == 4 << 16
        reader.read(300, 300, 100, 100)
        assert decoded[-1] == 33  # had been dropped


def test_windows_all_over_a_large_image_need_little_memory(large):
    def resident() -> int:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()

    with open_image(large, cache_bytes=4 << 20) as reader:
        reader.read(0, 0, 512, 512)
        before = resident()
        for y in range(0, 8192, 512):
            for x in range(0, 8192, 512):
                reader.read(y, x, 512, 512)
        assert resident() - before < 24 << 20  # of 64 MB


def test_one_huge_uncompressed_strip_is_not_read_whole(tmp_path):
    pixels = noise(4096, 4096, 1, "uint8")[..., 0]
    tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=4096)
    with open_image(tmp_path / "a.tif") as reader:
        np.testing.assert_array_equal(reader.read(4000, 100, 90, 80)[..., 0], pixels[4000:4090, 100:180])
        assert reader._cache.size == 0


def test_tiles_a_file_leaves_out_are_nodata(tmp_path):
    pixels = np.zeros((64, 64), np.int16)
    pixels[:32, :32] = 7
    tiles = (None if number else pixels[:32, :32] for number in range(4))
    tifffile.imwrite(tmp_path / "a.tif", tiles, shape=(64, 64), dtype=np.int16, tile=(32, 32),
                     extratags=[(42113, 2, None, "-9", True)])  # fmt: skip
    with open_image(tmp_path / "a.tif") as reader:
        assert reader.nodata == -9
        np.testing.assert_array_equal(reader.read(0, 0, 64, 64)[..., 0], np.where(pixels == 7, 7, -9))


# ---------------------------------------------------------------- other threads and processes


def test_threads_may_share_a_reader(tmp_path):
    pixels = noise(512, 512, 3, "uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(16, 16), compression="zlib")
    with open_image(tmp_path / "a.tif", cache_bytes=1 << 14) as reader, ThreadPoolExecutor(8) as pool:
        places = [(y, x) for y in range(0, 480, 40) for x in range(0, 480, 40)]
        windows = list(pool.map(lambda place: reader.read(*place, 30, 30), places))
    for (y, x), window in zip(places, windows, strict=True):
        np.testing.assert_array_equal(window, pixels[y : y + 30, x : x + 30])


def test_a_reader_pickles_and_survives_a_fork(tmp_path):
    pixels = noise(70, 91, 3, "uint16")
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(16, 16), compression="zlib")
    with open_image(tmp_path / "a.tif") as reader:
        with pickle.loads(pickle.dumps(reader)) as copy:
            np.testing.assert_array_equal(copy.read(1, 2, 30, 40), pixels[1:31, 2:42])
        opened = reader._tiff
        reader._process = -1  # as a forked process finds it
        np.testing.assert_array_equal(reader.read(1, 2, 30, 40), pixels[1:31, 2:42])
        assert reader._tiff is not opened and reader._process == os.getpid()
        opened.close()
    with pytest.raises(ValueError, match=r"a\.tif' is closed"):
        reader.read(0, 0, 1, 1)


def _smooth(dtype: str, channels: int) -> np.ndarray:
    y, x = np.mgrid[:150, :170]
    share = np.stack([(np.sin(x / (9 + band)) + np.cos(y / (7 + band)) + 2) / 4 for band in range(channels)])
    if np.dtype(dtype).kind == "f":
        return (share * 300 - 50).astype(dtype)
    return (share * min(np.iinfo(dtype).max, 60_000)).astype(dtype)  # (channels, height, width)


TILES = {"tiled": True, "blockxsize": 64, "blockysize": 64}
RGB_TILES = {**TILES, "photometric": "RGB"}
ZOO = {
    "lerc": ("uint8", 1, 0, {"compress": "LERC"}), "lerc of three": ("uint8", 3, 0, {"compress": "LERC", **RGB_TILES}),
    "lerc and zstd": ("float32", 2, 0, {"compress": "LERC_ZSTD", **TILES}),
    "webp": ("uint8", 3, 0, {"compress": "WEBP", "WEBP_LOSSLESS": "YES", **RGB_TILES}),
    "webp with alpha": ("uint8", 4, 0, {"compress": "WEBP", "WEBP_LOSSLESS": "YES", "ALPHA": "YES", **RGB_TILES}),
    "zstd": ("uint8", 3, 0, {"compress": "ZSTD", "predictor": 2, **RGB_TILES}),
    "lzma": ("uint8", 1, 0, {"compress": "LZMA"}),
    "sparse": ("uint8", 3, 0, {"SPARSE_OK": "TRUE", "compress": "DEFLATE", **RGB_TILES}),
    "sparse, plain": ("uint8", 1, 0, {"SPARSE_OK": "TRUE", **TILES}),
    "sparse, deep": ("uint16", 3, 0, {"SPARSE_OK": "TRUE", "compress": "LZW", **TILES}),
    "sparse, with nodata": ("uint8", 1, 0, {"SPARSE_OK": "TRUE", "compress": "LZW", "nodata": 7, **TILES}),
    "jpeg": ("uint8", 3, 2, {"compress": "JPEG", "photometric": "RGB"}),
    "jpeg, band by band": ("uint8", 3, 2, {"compress": "JPEG", "photometric": "RGB", "interleave": "BAND", **TILES}),
    "jpeg, strips, band by band": ("uint8", 3, 2, {"compress": "JPEG", "photometric": "RGB", "interleave": "BAND"}),
    "deflate, band by band": ("uint8", 3, 0, {"compress": "DEFLATE", "photometric": "RGB", "interleave": "BAND"}),
    "12 bits": ("uint16", 1, 0, {"compress": "DEFLATE", "nbits": 12}),
    "bigtiff": ("uint8", 3, 0, {"BIGTIFF": "YES", **RGB_TILES}),
    "big-endian": ("uint16", 3, 0, {"ENDIANNESS": "BIG", "compress": "DEFLATE", "predictor": 2}),
    "predictor of floats": ("float64", 3, 0, {"compress": "ZSTD", "predictor": 3, **TILES}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # rasterio, of the files it writes here
@pytest.mark.parametrize("name", ZOO)
def test_both_decoders_give_gdals_pixels(tmp_path, name):
    """As a whole and by windows; tiles that are left out of the file are zeros, or the nodata value."""
    rasterio = pytest.importorskip("rasterio")
    dtype, channels, tolerance, how = ZOO[name]
    pixels = _smooth(dtype, channels)
    if "nbits" in how:
        pixels = pixels // 16
    if "SPARSE_OK" in how:
        pixels[:, :64, :64] = pixels[:, 64:128, 64:128] = how.get("nodata", 0)
    path, told = tmp_path / "a.tif", {"height": 150, "width": 170, "count": channels, "dtype": dtype}
    try:
        with rasterio.open(path, "w", driver="GTiff", **told, **how) as target:
            target.write(pixels)
    except (rasterio.errors.RasterioError, ValueError) as error:
        pytest.skip(f"this GDAL does not write it: {error}")
    with rasterio.open(path) as source:
        expected = np.moveaxis(source.read(), 0, -1)
    whole = read_image(path, alpha="keep")
    assert (whole.dtype, whole.shape) == (expected.dtype, expected.shape)
    assert np.abs(whole.astype(np.float64) - expected).max() <= tolerance
    with open_image(path, alpha="keep") as reader:
        window = reader.read(40, 50, 70, 90)
    assert np.abs(window.astype(np.float64) - expected[40:110, 50:140]).max() <= tolerance


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("hole", ["none", "one for all bands", "one a band"])
def test_lerc_keeps_what_is_missing_where_it_is(tmp_path, interleave, hole):
    rasterio, _ = pytest.importorskip("rasterio"), pytest.importorskip("imagecodecs")
    pixels = RNG.random((70, 91, 3), np.float32)
    if hole != "none":
        pixels[:, :7] = np.nan
    if hole == "one a band":
        pixels[:9, :, 1], pixels[20, 20, 2] = np.nan, np.nan
    how = {"driver": "GTiff", "tiled": True, "blockxsize": 16, "blockysize": 16, "interleave": interleave}
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(
            tmp_path / "a.tif", "w", height=70, width=91, count=3, dtype="float32", compress="LERC_DEFLATE", **how
        ) as target,
    ):
        target.write(np.moveaxis(pixels, -1, 0))
    check_windows(tmp_path / "a.tif", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), pixels)


@pytest.mark.parametrize("text", ["-3.4e+38", "-3.40282346600000E+38"])
def test_tiles_left_out_hold_nodata_that_is_rounded(tmp_path, text):
    pixels = np.ones((32, 32), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(16, 16), compression="zlib", metadata=None,
                     extratags=[(42113, "s", 0, text, True)])  # fmt: skip
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as tiff:
        for tag in (324, 325):  # the first tile's place and length
            found = tiff.pages[0].tags[tag]
            found.overwrite((0, *found.value[1:]))
    with open_image(tmp_path / "a.tif") as reader:
        np.testing.assert_array_equal(is_empty(reader.read_masked(0, 0, 32, 32)), np.pad(np.ones((16, 16)), (0, 16)))
