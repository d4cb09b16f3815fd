"""Everything that is no TIFF: arrays, ordinary pictures, zarr, slides, rasters; masks; georeferences."""

from __future__ import annotations

import base64
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from castvision.data import Georeference, open_array, open_image, open_mask, read_mask
from castvision.data.datasets.samples import load_pixels
from castvision.data.reading.pixels import is_empty
from castvision.data.reading.whole import read_image

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (50, 70, 3), np.uint8)


# ---------------------------------------------------------------- arrays and ordinary pictures


def test_arrays():
    with open_array(RGB) as reader:
        window = reader.read(3, 4, 10, 20)
        np.testing.assert_array_equal(window, RGB[3:13, 4:24])
        window[...] = 0
        assert RGB[3:13, 4:24].any()  # a copy
        assert (reader.path, reader.mpp, reader.nodata, reader.georeference, reader.channel_names) == (None,) * 5
        assert "array" in repr(reader)
    copy = pickle.loads(pickle.dumps(open_array(RGB[..., 0])))
    assert (copy.height, copy.width, copy.channels) == (50, 70, 1)
    with pytest.raises(ValueError, match="non-empty array"):
        open_array(np.zeros((0, 3)))
    with pytest.raises(TypeError, match="real numbers"):
        open_array(np.zeros((4, 4), complex))
    with pytest.raises(TypeError, match="list"):
        open_array([[1]])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_pictures_are_what_read_image_gives(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB).save(path, **({"exif": exif} if suffix in ("png", "jpg") else {}))
    expected = read_image(path)
    with open_image(path) as reader:
        assert (reader.height, reader.width, reader.channels) == expected.shape
        np.testing.assert_array_equal(reader.read(2, 3, 30, 40), expected[2:32, 3:43])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(0, 0, 1, 2), expected[:1, :2])


def test_sixteen_bits_stay_sixteen_bits(tmp_path):
    grey = RNG.integers(0, 65536, (9, 8), np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    with open_image(tmp_path / "a.png") as reader:
        assert reader.dtype == np.uint16
        np.testing.assert_array_equal(reader.read(0, 0, 9, 8)[..., 0], grey)


@pytest.mark.parametrize(
    "window", [(-1, 0, 5, 5), (0, 66, 5, 5), (46, 0, 5, 5), (0, 0, 0, 5), (0, 0, 51, 1), (50, 0, 1, 1)]
)
def test_windows_outside_are_refused(tmp_path, window):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for reader in (open_array(RGB), open_image(tmp_path / "a.png"), open_image(tmp_path / "a.tif")):
        with reader, pytest.raises(ValueError, match=r"inside the 50 × 70 pixels of level 0"):
            reader.read(*window)
    with open_array(RGB) as reader, pytest.raises(ValueError, match=r"level in 0\.\.0"):
        reader.read(0, 0, 1, 1, level=1)
    with open_array(RGB) as reader, pytest.raises(TypeError):
        reader.read(0.5, 0, 1, 1)


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("kind", ["palette.png", "bilevel.png", "grey.png", "sixteen.png", "palette.tif", "grey.tif"])
def test_masks_keep_their_labels(tmp_path, kind):
    labels = RNG.integers(0, 2 if "bilevel" in kind else 7, (50, 70)).astype(
        np.uint16 if "sixteen" in kind else np.uint8
    )
    if "palette" in kind:
        image = Image.fromarray(labels).convert("P")
        image.putpalette(RNG.integers(0, 256, 21).tolist())
    else:
        image = Image.fromarray(labels.astype(bool) if "bilevel" in kind else labels)
    image.save(tmp_path / kind)
    np.testing.assert_array_equal(read_mask(tmp_path / kind), labels)
    with open_mask(tmp_path / kind) as reader:
        assert (reader.channels, reader.dtype) == (1, labels.dtype)
        np.testing.assert_array_equal(reader.read(4, 5, 6, 7)[..., 0], labels[4:10, 5:12])


@pytest.mark.parametrize("is_white_zero", [False, True])
def test_bilevel_tiff_masks_are_alike_by_windows_and_whole(tmp_path, is_white_zero):
    labels = RNG.integers(0, 2, (40, 64)).astype(bool)
    tifffile.imwrite(tmp_path / "a.tif", labels, photometric="miniswhite" if is_white_zero else "minisblack")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), labels)  # as stored, also where white is zero
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", palette="index")[..., 0], labels)


def test_what_is_no_mask(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "rgb.png")
    tifffile.imwrite(tmp_path / "float.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match=r"one whole number a pixel in .*rgb\.png', got 3 channel\(s\) of uint8"):
        open_mask(tmp_path / "rgb.png")
    with pytest.raises(ValueError, match=r"float\.tif', got 1 channel\(s\) of float32"):
        read_mask(tmp_path / "float.tif")


# ---------------------------------------------------------------- georeferences and other facts

UTM = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)


@pytest.mark.parametrize("transform", [(10.0, 0.0, 5e5, 0.0, -10.0, 6e6), (8.0, 6.0, 5e5, 6.0, -8.0, 6e6)])
@pytest.mark.parametrize("is_point", [False, True])
def test_a_georeference_is_written_back_as_it_was(tmp_path, transform, is_point):
    keys = tuple(2 if place == 11 and is_point else key for place, key in enumerate(UTM))
    bands = RNG.integers(0, 65536, (12, 40, 50), np.uint16)
    place = Georeference(transform, "EPSG:32633", keys, (1.5, 2.5), "WGS 84|")
    extra = [*place.extratags(), (42113, 2, None, "65535", True)]
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="separate", tile=(16, 16),
                     extratags=extra, metadata=None)  # fmt: skip
    with open_image(tmp_path / "a.tif") as reader:
        assert reader.georeference == place
        assert (reader.nodata, reader.mpp, reader.channels) == (65535, 10, 12)
        np.testing.assert_array_equal(reader.read(5, 6, 20, 30), np.moveaxis(bands, 0, -1)[5:25, 6:36])
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(tmp_path / "a.tif") as dataset:
        assert tuple(dataset.transform)[:6] == pytest.approx(transform)
        assert dataset.crs.to_epsg() == 32633


def test_of_a_window_and_of_a_level():
    place = Georeference((10.0, 0.0, 500.0, 0.0, -10.0, 900.0))
    assert place.of_window(2, 3).transform == (10, 0, 530, 0, -10, 880)
    assert place.of_window(0, 0, 4).transform == (40, 0, 500, 0, -40, 900)
    assert place.of_window(0, 0, 4).pixel_size == 40
    turned = Georeference((0.0, 2.0, 5.0, 3.0, 0.0, 7.0)).of_window(10, 100)
    assert turned.transform == (0, 2, 25, 3, 0, 307)


def test_what_gdal_writes_is_understood(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    bands = RNG.normal(size=(3, 300, 260)).astype(np.float32)
    profile = {"driver": "GTiff", "width": 260, "height": 300, "count": 3, "dtype": "float32", "crs": "EPSG:4326",
               "transform": rasterio.Affine(0.01, 0, 7, 0, -0.02, 47), "nodata": float("nan"), "tiled": True,
               "blockxsize": 64, "blockysize": 64, "compress": "deflate",
               "predictor": 3, "interleave": "band"}  # fmt: skip
    with rasterio.open(tmp_path / "a.tif", "w", **profile) as dataset:
        dataset.write(bands)
        dataset.descriptions = ("red", "near <infra>", "blue")
        dataset.build_overviews([2, 4])
    with open_image(tmp_path / "a.tif") as reader:
        assert [(level.height, level.width) for level in reader.levels] == [(300, 260), (150, 130), (75, 65)]
        np.testing.assert_array_equal(reader.read(70, 80, 90, 100), np.moveaxis(bands, 0, -1)[70:160, 80:180])
        assert np.isnan(reader.nodata)
        assert reader.georeference.transform == pytest.approx((0.01, 0, 7, 0, -0.02, 47))
        assert reader.georeference.crs == "EPSG:4326"
        assert reader.channel_names == ("red", "near <infra>", "blue")


def test_microns_per_pixel(tmp_path):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "CYX", "PhysicalSizeX": 250.0, "PhysicalSizeXUnit": "nm", "Channel": {"Name": ["DAPI", "GFP"]}}
    tifffile.imwrite(path, np.zeros((2, 8, 9), np.uint16), metadata=metadata)
    with open_image(path) as reader:
        assert reader.mpp == pytest.approx(0.25)
        assert reader.channel_names == ("DAPI", "GFP")
    cases = {
        "cm": ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
        "inch": ({"resolution": (300, 300), "resolutionunit": "INCH"}, 25400 / 300),
        "placeholder": ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),
        "imagej": ({"resolution": (4, 4), "imagej": True, "metadata": {"unit": "um"}}, 0.25),
        "none": ({}, None),
    }
    for name, (options, expected) in cases.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", RGB[..., 0], **options)
        with open_image(tmp_path / f"{name}.tif") as reader:
            assert reader.mpp == (None if expected is None else pytest.approx(expected)), name


# ---------------------------------------------------------------- extras


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("layout", ["yx", "yxc", "cyx"])
def test_zarr_arrays(tmp_path, version, layout):
    zarr = pytest.importorskip("zarr")
    pixels = RNG.integers(0, 65536, (50, 70) if layout == "yx" else (50, 70, 5), np.uint16)
    stored = np.moveaxis(pixels, -1, 0) if layout == "cyx" else pixels
    chunks = {"yx": (16, 16), "yxc": (16, 16, 5), "cyx": (1, 16, 16)}[layout]
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=stored.shape, chunks=chunks, dtype="u2", zarr_format=version
    )
    array[...] = stored
    expected = pixels.reshape(50, 70, -1)
    with open_image(tmp_path / "a.zarr") as reader:
        assert (reader.height, reader.width, reader.channels) == expected.shape
        np.testing.assert_array_equal(reader.read(10, 20, 30, 40), expected[10:40, 20:60])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(49, 69, 1, 1), expected[49:, 69:])


@pytest.mark.parametrize("told", ["_FillValue", "missing_value", "by xarray", "never written", "0 by default"])
def test_nodata_of_zarr(tmp_path, told):
    zarr = pytest.importorskip("zarr")
    fill = 0.0 if told == "0 by default" else -9999.0
    empty = fill if told in ("never written", "0 by default") else 0.0
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(6, 8), chunks=(6, 2), dtype="f4", fill_value=empty)
    array[:, 2:] = 5
    if told in ("_FillValue", "missing_value", "by xarray"):
        array[:, :2] = fill
        value = base64.b64encode(struct.pack("<d", fill)).decode() if told == "by xarray" else fill
        array.attrs["_FillValue" if told == "by xarray" else told] = value
    with open_image(tmp_path / "a.zarr") as reader:
        found = is_empty(reader.read_masked(0, 0, 6, 8))
    assert found[:, :2].all() == (told != "0 by default")
    assert not found[:, 2:].any()


@pytest.mark.parametrize("kind", ["RGB", "P", "LA", "1"])
def test_nodata_beside_a_png_is_of_what_is_stored(tmp_path, kind):
    """GDAL's .aux.xml may state it for some bands, and of a palette it is a number and no colour."""
    stored = RNG.integers(0, 2 if kind == "1" else 4, (9, 11, {"RGB": 3, "LA": 2}.get(kind, 1)), np.uint8)
    if kind == "LA":
        stored[..., 1] = 255
    image = Image.fromarray(stored[..., 0] > 0) if kind == "1" else Image.fromarray(stored.squeeze())
    if kind == "P":
        image.putpalette([7, 8, 9, 1, 1, 1, 1, 2, 3, 4, 5, 6])
    image.save(tmp_path / "a.png")
    band = '<PAMRasterBand band="1"><NoDataValue>1</NoDataValue></PAMRasterBand>'
    (tmp_path / "a.png.aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    with open_image(tmp_path / "a.png") as reader:
        missing = np.ma.getmaskarray(reader.read_masked(0, 0, 9, 11))
    assert np.array_equal(missing[..., 0], stored[..., 0] == 1)
    assert not missing[..., 1:].any() if kind == "RGB" else (missing == missing[..., :1]).all()


def test_the_scale_of_another_image_of_an_ome_tiff(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as writer:
        writer.write(RGB, photometric="rgb", metadata={"axes": "YXS"})
        size = {"PhysicalSizeX": 9.0, "PhysicalSizeY": 9.0}
        writer.write(RGB[:9], photometric="rgb", metadata={"axes": "YXS", **size})
    with open_image(tmp_path / "a.ome.tif") as reader:
        assert reader.mpp is None


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr(tmp_path, version):
    zarr = pytest.importorskip("zarr")
    full = RNG.integers(0, 256, (1, 2, 1, 64, 48), np.uint8)
    group = zarr.create_group(str(tmp_path / "a.zarr"), zarr_format=version)
    datasets = []
    for number, pixels in enumerate((full, full[..., ::2, ::2])):
        array = group.create_array(str(number), shape=pixels.shape, chunks=(1, 1, 1, 16, 16), dtype="u1")
        array[...] = pixels
        scale = [1, 1, 1, 0.5 * 2**number, 0.5 * 2**number]
        datasets.append({"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": name} for name in "tcz"] + [{"name": name, "unit": "micrometer"} for name in "yx"]
    attributes = {
        "multiscales": [{"axes": axes, "datasets": datasets}],
        "omero": {"channels": [{"label": "a"}, {"label": "b"}]},
    }
    group.attrs.update(attributes if version == 2 else {"ome": attributes})
    with open_image(tmp_path / "a.zarr") as reader:
        assert [(level.height, level.width, level.downsample) for level in reader.levels] == [(64, 48, 1), (32, 24, 2)]
        assert (reader.mpp, reader.channel_names) == (0.5, ("a", "b"))
        expected = np.moveaxis(full[0, :, 0], 0, -1)[::2, ::2]
        np.testing.assert_array_equal(reader.read(5, 6, 20, 10, level=1), expected[5:25, 6:16])
    empty = zarr.create_group(str(tmp_path / "b.zarr"), zarr_format=version)
    with pytest.raises(ValueError, match=r"b\.zarr.*name one of its arrays"):
        open_image(tmp_path / "b.zarr")
    stack = empty.create_array("stack", shape=(100, 80, 90), chunks=(10, 10, 10), dtype="u1")
    assert stack.ndim == 3
    with pytest.raises(ValueError, match=r"stack.*expected \(y, x\)"):
        open_image(tmp_path / "b.zarr" / "stack")


def test_openslide(tmp_path):
    pytest.importorskip("openslide")
    from castvision.data.reading.reader import Options
    from castvision.data.reading.slide import SlideReader

    full = RGB[:48, :64]
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for number, pixels in enumerate((full, full[::2, ::2])):
            writer.write(pixels, photometric="rgb", tile=(16, 16), compression="zlib", subfiletype=number,
                         resolution=(20000, 20000), resolutionunit="CENTIMETER")  # fmt: skip
    with SlideReader(tmp_path / "a.tif", Options()) as reader:
        assert [(level.height, level.width) for level in reader.levels] == [(48, 64), (24, 32)]
        assert reader.mpp == pytest.approx(0.5)
        np.testing.assert_array_equal(reader.read(5, 6, 20, 30), full[5:25, 6:36])
        np.testing.assert_array_equal(reader.read(3, 6, 20, 26, level=1), full[::2, ::2][3:23, 6:32])
        assert pickle.loads(pickle.dumps(reader)).read(0, 0, 1, 1).shape == (1, 1, 3)
    Image.fromarray(RGB).save(tmp_path / "a.mrxs", "JPEG")  # as the first file of such a slide is one
    with pytest.raises(ValueError, match=r"a\.mrxs.*openslide does not know it"):
        open_image(tmp_path / "a.mrxs")


@pytest.mark.parametrize("bits", [2, 4])
def test_samples_of_few_bits_are_spread_whatever_reads_them(tmp_path, bits):
    rasterio = pytest.importorskip("rasterio")
    from rasterio.shutil import copy

    stored = RNG.integers(0, 2**bits, (20, 30), np.uint8)
    about = {"driver": "GTiff", "height": 20, "width": 30, "count": 1, "dtype": "uint8", "nbits": bits, "nodata": 1}
    with rasterio.open(tmp_path / "a.tif", "w", **about, transform=rasterio.Affine(1, 0, 5, 0, -1, 9)) as dataset:
        dataset.write(stored[None])
    copy(str(tmp_path / "a.tif"), str(tmp_path / "a.vrt"), driver="VRT")
    for name in ("a.tif", "a.vrt"):
        with open_image(tmp_path / name) as reader:
            read = reader.read_masked(0, 0, 20, 30)[..., 0]
            assert reader.nodata == 255 // (2**bits - 1)
        assert np.array_equal(np.ma.getmaskarray(read), stored == 1)
        assert np.array_equal(np.ma.getdata(read), stored * (255 // (2**bits - 1)))
        assert np.array_equal(read_mask(tmp_path / name), stored)


def test_rasterio(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    bands = RNG.integers(0, 4096, (4, 200, 300), np.uint16)
    place = rasterio.Affine(10, 0, 5e5, 0, -10, 6e6)
    how = {"width": 300, "height": 200, "count": 4, "dtype": "uint16", "crs": "EPSG:32633", "transform": place}
    with rasterio.open(
        tmp_path / "a.jp2", "w", driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES", **how
    ) as dataset:
        dataset.write(bands)
    with open_image(tmp_path / "a.jp2") as reader:
        assert (reader.height, reader.width, reader.channels, reader.dtype) == (200, 300, 4, np.uint16)
        np.testing.assert_array_equal(reader.read(20, 30, 50, 60), np.moveaxis(bands, 0, -1)[20:70, 30:90])
        assert reader.georeference.transform == tuple(place)[:6]
        assert reader.mpp == 10
        reread = pickle.loads(pickle.dumps(reader))
        tags = reader.georeference.extratags()
    assert reread.georeference.crs.startswith("PROJCS")
    tifffile.imwrite(tmp_path / "b.tif", bands[0], extratags=tags)
    with rasterio.open(tmp_path / "b.tif") as dataset:
        assert dataset.crs.to_epsg() == 32633 and dataset.transform == place
    (tmp_path / "c.vrt").write_text("<VRTDataset nonsense")
    with pytest.raises(ValueError, match=r"c\.vrt.*a virtual raster.s XML"):
        open_image(tmp_path / "c.vrt")


WITHOUT = """
import sys
for name in ("imagecodecs", "zarr", "openslide", "rasterio"):
    sys.modules[name] = None
from castvision.data import open_image
for path in sys.argv[1:]:
    try:
        with open_image(path) as reader:
            print(type(reader).__name__, reader.height)
    except (ImportError, ValueError) as error:
        print(type(error).__name__, " ".join(str(error).split()))
"""


def test_without_the_extras(tmp_path):
    """Small files go through Pillow where it can read them; others name the extra."""
    pytest.importorskip("imagecodecs")
    tifffile.imwrite(tmp_path / "lzw.tif", RGB, photometric="rgb", compression="lzw", tile=(16, 16))
    tifffile.imwrite(tmp_path / "jpeg.tif", RGB, photometric="rgb", compression="jpeg", tile=(16, 16))
    tifffile.imwrite(tmp_path / "zstd.tif", RGB[..., 0].astype(np.uint32), compression="zstd")
    tifffile.imwrite(tmp_path / "plain.tif", RGB, photometric="rgb", compression="zlib", tile=(16, 16))
    (tmp_path / "a.zarr").mkdir()
    (tmp_path / "a.jp2").write_bytes(b"\0\0\0\x0cjP  \r\n")
    (tmp_path / "a.mrxs").write_bytes(b"x")
    names = ("lzw.tif", "jpeg.tif", "zstd.tif", "plain.tif", "a.zarr", "a.jp2", "a.mrxs")
    command = [sys.executable, "-c", WITHOUT, *(str(tmp_path / name) for name in names)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[:2] == ["WholeImageReader 50"] * 2
    assert lines[2].startswith("ValueError") and "zstd.tif" in lines[2] and "castvision[large-images]" in lines[2]
    assert lines[3] == "TiffReader 50"
    for line, name in zip(lines[4:], ("zarr", "rasterio", "openslide"), strict=True):
        assert line.startswith("ImportError") and name in line and "pip install 'castvision[large-images]'" in line


def test_a_text_that_claims_to_be_a_picture_is_named_once(tmp_path):
    path = tmp_path / "notes.png"
    path.write_text("no picture at all")
    with pytest.raises(ValueError, match="expected one of PNG") as caught:
        open_image(path)
    assert str(caught.value).count("notes.png") == 1


# ---------------------------------------------------------------- bands


@pytest.mark.parametrize("kind", ["tif", "png"])
def test_bands_are_chosen_and_ordered_with_opacity_as_one_of_them(tmp_path, kind):
    """A raster of red, green, blue and infrared that calls its infrared opacity."""
    stored = RNG.integers(0, 256, (40, 30, 4), np.uint8)
    path = tmp_path / f"a.{kind}"
    if kind == "tif":
        tifffile.imwrite(path, stored, photometric="rgb", extrasamples=["unassalpha"], tile=(16, 16))
    else:
        Image.fromarray(stored).save(path)
    for bands in ((1, 2, 3), (4, 1, 2), (4,), (1, 2, 3, 4), (2, 2)):
        with open_image(path, bands=bands) as reader:
            assert reader.channels == len(bands)
            chosen = stored[..., [band - 1 for band in bands]]
            np.testing.assert_array_equal(reader.read(3, 5, 20, 11), chosen[3:23, 5:16])
            copy = pickle.loads(pickle.dumps(reader))
            np.testing.assert_array_equal(copy.read(0, 0, 40, 30), chosen)
        np.testing.assert_array_equal(load_pixels(path, bands=bands), chosen)
    for bands in ((0, 1), (5,), ()):
        with pytest.raises(ValueError, match=r"expected bands within 1\.\.4"):
            open_image(path, bands=bands)


@pytest.mark.parametrize("how", ["nodata", "msk"])
def test_chosen_bands_keep_what_the_file_says_is_missing(tmp_path, how):
    pixels, path = RNG.integers(1, 255, (32, 40, 3), np.uint8), tmp_path / "a.tif"
    is_known = np.ones(pixels.shape, bool)
    is_known[:9, :7, 1], is_known[20:, :5, 2] = False, False
    pixels[~is_known] = 255
    told = {"extratags": [(42113, "s", 0, "255", True)]} if how == "nodata" else {}
    tifffile.imwrite(path, pixels, photometric="rgb", **told)
    if how == "msk":
        tifffile.imwrite(tmp_path / "a.tif.msk", is_known.astype(np.uint8) * 255, photometric="rgb")
    with open_image(path, bands=[3, 2]) as reader:
        read = reader.read_masked(0, 0, 32, 40)
    np.testing.assert_array_equal(np.ma.getmaskarray(read), ~is_known[..., [2, 1]])
    np.testing.assert_array_equal(np.ma.getdata(read), pixels[..., [2, 1]])
