"""What is no data: one answer of every reader, for training, statistics, prediction, evaluation and pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch.utils.data import default_collate

from castvision.data import ChannelStatistics, open_image
from castvision.data.datasets.batch import with_masks
from castvision.data.datasets.coco import CocoSegmentation, read_coco
from castvision.data.datasets.multilabel import LabelTable, MultiLabelDataset
from castvision.data.datasets.segmentation import Pair, SegmentationDataset
from castvision.data.datasets.sources import ImageSources
from castvision.data.datasets.windows import WindowDataset
from castvision.data.reading import open_array
from castvision.data.reading.labels import ClassReader, LabelMap
from castvision.data.reading.overview import read_overview
from castvision.data.reading.pixels import holds_data, is_empty, mark_missing, nodata_number, to_picture
from castvision.data.transforms.augmentation import SampleTransform
from castvision.data.transforms.statistics import RunningStatistics
from castvision.inference.tiled import tiled_inference
from castvision.inference.truth import check_labels
from castvision.inference.writers.preview import read_reduced
from castvision.visualization.pictures import display_picture

RNG = np.random.default_rng(0)
SIDE, HOLE = 32, np.zeros((32, 32), bool)
HOLE[:, :8] = True
HOLE[20, 20] = True


def tagged(path, pixels, nodata, **how):
    text = str(nodata)
    how = {"photometric": "minisblack", "metadata": None, **how}
    tifffile.imwrite(path, pixels, extratags=[(42113, "s", len(text) + 1, text, True)], **how)


def measured(dtype, low=100, high=200, channels=None):
    shape = (SIDE, SIDE) if channels is None else (SIDE, SIDE, channels)
    return RNG.integers(low, high, shape).astype(dtype)


def by_value(dtype, nodata, **how):
    def write(folder):
        pixels = measured(dtype)
        pixels[HOLE] = nodata
        tagged(folder / "a.tif", pixels, nodata, **how)
        return folder / "a.tif"

    return write


def lowest_float(folder):
    pixels = measured(np.float32)
    pixels[HOLE] = np.finfo(np.float32).min
    tagged(folder / "a.tif", pixels, "-3.4028234663852886e+38")
    return folder / "a.tif"


def one_of_64_bits(folder):
    """Neighbours of the nodata value that a float64 cannot tell from it."""
    pixels = np.full((SIDE, SIDE), 2**63 + 1, np.uint64)
    pixels[HOLE] = 2**63
    tagged(folder / "a.tif", pixels, 2**63)
    return folder / "a.tif"


def not_finite(value):
    def write(folder):
        pixels = measured(np.float32, channels=2)
        pixels[HOLE] = value
        tifffile.imwrite(folder / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
        return folder / "a.tif"

    return write


def palette_index(folder):
    pixels = measured(np.uint8, 1, 5)
    pixels[HOLE] = 7
    colours = RNG.integers(0, 65536, (3, 256)).astype(np.uint16)
    tagged(folder / "a.tif", pixels, 7, photometric="palette", colormap=colours)
    return folder / "a.tif"


def opacity(name):
    def write(folder):
        pixels = measured(np.uint8, channels=4)
        pixels[..., 3] = np.where(HOLE, 0, 255)
        if name.endswith("tif"):
            tifffile.imwrite(folder / name, pixels, photometric="rgb", extrasamples=["unassalpha"])
        else:
            Image.fromarray(pixels).save(folder / name)
        return folder / name

    return write


def mask_inside(folder):
    with tifffile.TiffWriter(folder / "a.tif") as writer:
        writer.write(measured(np.uint8, channels=3), photometric="rgb", metadata=None)
        writer.write(~HOLE, photometric=4, subfiletype=4, metadata=None)
    return folder / "a.tif"


def mask_beside(name):
    def write(folder):
        Image.fromarray(measured(np.uint8, channels=3)).save(folder / name)
        tifffile.imwrite(folder / f"{name}.msk", np.where(HOLE, 0, 255).astype(np.uint8), photometric="minisblack")
        return folder / name

    return write


def opacity_of_many_bands(folder):
    pixels = measured(np.uint16, channels=6)
    pixels[..., 5] = np.where(HOLE, 0, 65535)
    tifffile.imwrite(folder / "a.tif", pixels, photometric="minisblack", planarconfig="contig",
                     extrasamples=[*["unspecified"] * 4, "unassalpha"])  # fmt: skip
    return folder / "a.tif"


def told_by_gdal_beside(name, channels):
    def write(folder):
        pixels = measured(np.uint8, channels=channels)
        pixels[HOLE] = np.arange(3, 3 + channels)
        if name.endswith("tif"):
            tagged(folder / name, pixels, 200, planarconfig="contig")  # the .aux.xml goes before it
        else:
            Image.fromarray(pixels).save(folder / name)
        bands = "".join(
            f'<PAMRasterBand band="{band + 1}"><NoDataValue>{band + 3:.14E}</NoDataValue></PAMRasterBand>'
            for band in range(channels)
        )
        (folder / f"{name}.aux.xml").write_text(f"<PAMDataset>{bands}</PAMDataset>")
        return folder / name

    return write


KINDS = {
    "uint8 0": by_value(np.uint8, 0),
    "uint16 65535": by_value(np.uint16, 65535),
    "int16 -32768": by_value(np.int16, -32768),
    "int32 -9999": by_value(np.int32, -9999),
    "float32 -9999": by_value(np.float32, -9999),
    "float64 nan": by_value(np.float64, np.nan),
    "lowest float32": lowest_float,
    "uint64": one_of_64_bits,
    "white is zero": by_value(np.uint8, 255, photometric="miniswhite"),
    "palette": palette_index,
    "nan, not declared": not_finite(np.nan),
    "infinite": not_finite(-np.inf),
    "opacity of a TIFF": opacity("a.tif"),
    "opacity of a PNG": opacity("a.png"),
    "mask inside": mask_inside,
    "mask beside a TIFF": mask_beside("a.tif"),
    "mask beside a PNG": mask_beside("a.png"),
    "opacity of many bands": opacity_of_many_bands,
    "aux.xml of a TIFF": told_by_gdal_beside("a.tif", 5),
    "aux.xml of a PNG": told_by_gdal_beside("a.png", 3),
}


@pytest.fixture(params=KINDS)
def image(request, tmp_path):
    return KINDS[request.param](tmp_path)


@pytest.fixture
def labels(tmp_path):
    Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(tmp_path / "labels.png")
    return tmp_path / "labels.png"


def known_values(path):
    with open_image(path) as reader:
        return reader.read(0, 0, SIDE, SIDE)[~HOLE].astype(np.float64)


def coco(folder, image):
    content = {
        "images": [{"id": 1, "file_name": image.name, "height": SIDE, "width": SIDE}],
        "categories": [{"id": 1, "name": "field"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1,
                         "segmentation": [[0, 0, SIDE, 0, SIDE, SIDE, 0, SIDE]]}],
    }  # fmt: skip
    (folder / "coco.json").write_text(json.dumps(content))
    return CocoSegmentation(read_coco(folder / "coco.json"))


def test_readers_agree(image):
    with open_image(image) as reader:
        assert reader.has_gaps or not np.isfinite(reader.read(0, 0, SIDE, SIDE)).all()
        pixels = reader.read_masked(0, 0, SIDE, SIDE)
        np.testing.assert_array_equal(is_empty(pixels), HOLE)
        np.testing.assert_array_equal(is_empty(reader.read_masked(3, 5, 20, 17)), HOLE[3:23, 5:22])
        plain = reader.read(0, 0, SIDE, SIDE)
        assert type(plain) is np.ndarray
        np.testing.assert_array_equal(plain, np.ma.getdata(pixels))


def test_statistics_are_those_of_what_was_measured(image):
    values = known_values(image)
    with open_image(image) as reader:
        scale = np.iinfo(reader.dtype).max if reader.dtype.kind == "u" else 1
    statistics = ChannelStatistics.of([image])
    np.testing.assert_allclose(statistics.mean, values.mean(axis=0) / scale)
    spread = values.std(axis=0) / scale
    np.testing.assert_allclose(statistics.std, np.where(spread > 0, spread, 1))


@pytest.mark.parametrize("task", ["folder", "coco", "windows"])
def test_training_ignores_it_and_hides_it(tmp_path, image, labels, task):
    statistics = ChannelStatistics.of([image])
    if task == "windows":
        sample = WindowDataset(ImageSources([(image, labels)]), SIDE, statistics, sampling="grid")[0]
    else:
        pair = Pair(image, labels)
        data = coco(tmp_path, image) if task == "coco" else SegmentationDataset([pair], LabelMap(["a", "b"]))
        measured_here = RunningStatistics()
        measured_here.add(data.read(0)[0])
        np.testing.assert_allclose(measured_here.result().mean, statistics.mean)
        data.transform = SampleTransform(SIDE, statistics.mean, statistics.std)
        sample = data[0]
    tensor, target, extras = sample
    np.testing.assert_array_equal(target == 255, HOLE)
    np.testing.assert_array_equal(~extras["pixel_mask"], HOLE)
    assert (tensor[:, HOLE] == 0).all()
    assert tensor.isfinite().all() and tensor[:, ~HOLE].abs().max() < 10


def test_images_with_labels_of_the_whole_show_the_mean(image):
    statistics = ChannelStatistics.of([image])
    data = MultiLabelDataset(LabelTable([image], ["a"], np.ones((1, 1), np.float32)))
    data.transform = SampleTransform(SIDE, statistics.mean, statistics.std)
    assert (data[0][0][:, HOLE] == 0).all()


class Seen:
    """Takes NaN for missing values, as `TileModel` does, and keeps what it was given."""

    missing = float("nan")

    def __init__(self, statistics, scale):
        self.statistics, self.scale, self.tiles = statistics, scale, []

    def __call__(self, batch, pixel_mask=None):
        self.tiles.append((batch, pixel_mask))
        return torch.stack([batch[:, 0] * 0, batch[:, 0] * 0 + 1], dim=1).nan_to_num()


def test_prediction_gives_it_no_class(image):
    seen = Seen(None, None)
    result = tiled_inference(image, seen, tile=SIDE, overlap=0, mask_nodata=True)
    np.testing.assert_array_equal(result.labels == 255, HOLE)
    assert result.class_pixels == (0, int((~HOLE).sum()))
    ((batch, pixel_mask),) = seen.tiles
    np.testing.assert_array_equal(~pixel_mask[0], HOLE)
    assert batch[0, :, HOLE].isnan().all() and batch[0, :, ~HOLE].isfinite().all()


def test_overviews_and_pictures_leave_it_out(image):
    values = known_values(image)
    with open_image(image) as reader:
        overview = read_overview(reader, (2, 2))
        assert overview.min() >= values.min() * (1 - 1e-6) and overview.max() <= values.max() * (1 + 1e-6)
        reduced = read_reduced(reader, SIDE // 4)
        known = holds_data(reduced)[..., 0]
        np.testing.assert_array_equal(known, np.repeat([[False, False] + [True] * 6], 8, axis=0))
        assert values.min() <= reduced[known].min() and reduced[known].max() <= values.max()
        if reader.dtype != np.uint8 and values.std() > 0:
            picture = display_picture(reader.read_masked(0, 0, SIDE, SIDE), min_side=SIDE)
            assert picture[~HOLE].std() > 50  # spread over the whole range


@pytest.mark.parametrize("value", [-9999.0, np.nan])
def test_a_pixel_that_misses_some_bands_is_used(tmp_path, labels, value):
    """Its other bands are shown to the model, the missing one is the mean; in training and in prediction alike."""
    pixels = measured(np.float32, channels=2)
    pixels[4, 4, 0] = value
    pixels[5, 5] = value
    tagged(tmp_path / "a.tif", pixels, value, planarconfig="contig")
    statistics = ChannelStatistics.of([tmp_path / "a.tif"])
    kept = np.ones((SIDE, SIDE), bool)
    kept[4, 4] = kept[5, 5] = False
    np.testing.assert_allclose(statistics.mean[0], pixels[kept][:, 0].mean(), rtol=1e-6)
    data = SegmentationDataset([Pair(tmp_path / "a.tif", labels)], LabelMap(["a", "b"]))
    data.transform = SampleTransform(SIDE, statistics.mean, statistics.std)
    window = WindowDataset(ImageSources([(tmp_path / "a.tif", labels)]), SIDE, statistics, sampling="grid")[0]
    for tensor, target, _ in (data[0], window):
        assert (target == 255).nonzero().tolist() == [[5, 5]]
        assert abs(float(tensor[0, 4, 4])) < 1e-5 and tensor[1, 4, 4] != 0
    seen = Seen(None, None)
    result = tiled_inference(tmp_path / "a.tif", seen, tile=SIDE, overlap=0, mask_nodata=True)
    assert np.argwhere(result.labels == 255).tolist() == [[5, 5]]
    assert seen.tiles[0][0][0, :, 4, 4].isnan().tolist() == [True, False]


MASKS = [(np.int16, -9999), (np.int8, -1), (np.uint8, 200), (np.uint16, 65535)]


@pytest.mark.parametrize(("dtype", "nodata"), MASKS)
def test_nodata_of_masks_is_ignored_by_every_reader(tmp_path, dtype, nodata):
    stored = np.ones((SIDE, SIDE), dtype)
    stored[HOLE] = nodata
    tagged(tmp_path / "m.tif", stored, nodata)
    tifffile.imwrite(tmp_path / "a.tif", measured(np.uint8))
    expected = np.where(HOLE, 255, 1)
    np.testing.assert_array_equal(LabelMap(["a", "b"]).read(tmp_path / "m.tif"), expected)
    np.testing.assert_array_equal(LabelMap(["a", "b"], {1: "b"}).read(tmp_path / "m.tif"), expected)
    sources = ImageSources([(tmp_path / "a.tif", tmp_path / "m.tif")], num_classes=2)
    np.testing.assert_array_equal(sources.read_labels(0, 0, 0, SIDE, SIDE), expected)
    with ClassReader(tmp_path / "m.tif", LabelMap(["a", "b"])) as mask:  # as evaluation reads masks
        np.testing.assert_array_equal(mask.read(0, 0, SIDE, SIDE)[..., 0], expected)
        check_labels(mask, 2)


def test_a_mask_whose_nodata_is_a_class_is_refused_with_the_way_out(tmp_path):
    stored = np.ones((SIDE, SIDE), np.uint8)
    stored[HOLE] = 0
    tagged(tmp_path / "m.tif", stored, 0)
    tifffile.imwrite(tmp_path / "a.tif", measured(np.uint8))
    sources = ImageSources([(tmp_path / "a.tif", tmp_path / "m.tif")], num_classes=2)
    with ClassReader(tmp_path / "m.tif", LabelMap(["a", "b"])) as mask:
        for read in (
            lambda: LabelMap(["a", "b"]).read(tmp_path / "m.tif"),
            lambda: sources.read_labels(0, 0, 0, SIDE, SIDE),
            lambda: check_labels(mask, 2),
        ):
            with pytest.raises(ValueError, match=r"nodata 0, the label of class .*-unsetnodata.*0: ignore"):
                read()
    ignored = LabelMap(["b"], {0: "ignore", 1: "b"}).read(tmp_path / "m.tif")
    np.testing.assert_array_equal(ignored, np.where(HOLE, 255, 0))


@pytest.mark.parametrize(
    ("text", "number"),
    [("255", 255), ("-9999.0", -9999), (str(2**63 + 1), 2**63 + 1), ("0.5", 0.5), ("none", None), (None, None),
     ("65535\0 ", 65535), ("-1.5e300", -1.5e300)],
)  # fmt: skip
def test_stated_numbers(text, number):
    assert nodata_number(text) == number
    assert type(nodata_number(text)) is type(number)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_nodata_of_masks_beside_them(tmp_path, suffix):
    labels, path = np.ones((SIDE, SIDE), np.uint8), tmp_path / f"a.{suffix}"
    labels[HOLE] = 9
    Image.fromarray(labels).save(path)
    beside = '<PAMDataset><PAMRasterBand band="1"><NoDataValue>{}</NoDataValue></PAMRasterBand></PAMDataset>'
    (tmp_path / f"{path.name}.aux.xml").write_text(beside.format("9.00000000000000E+00"))
    np.testing.assert_array_equal(LabelMap(["low", "high"]).read(path), np.where(HOLE, 255, 1))
    (tmp_path / f"{path.name}.aux.xml").write_text(beside.format(1))
    with pytest.raises(ValueError, match="no class in the mask"):
        LabelMap(["low", "high"]).read(path)


def test_a_mask_beside_of_another_size_is_refused(tmp_path):
    Image.fromarray(measured(np.uint8)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "a.png.msk", np.zeros((8, 8), np.uint8))
    with open_image(tmp_path / "a.png") as reader, pytest.raises(ValueError, match="size 32 × 32, got 8 × 8"):
        reader.read_masked(0, 0, 4, 4)


def test_dark_pictures_are_stretched():
    dark = measured(np.uint8, 0, 20)[..., None]
    assert to_picture(dark).max() == 255
    bright = measured(np.uint8)[..., None]
    np.testing.assert_array_equal(to_picture(bright), bright)
    filled = mark_missing(np.where(HOLE, 255, dark[..., 0]).astype(np.uint8)[..., None], ~HOLE[..., None])
    assert to_picture(filled)[~HOLE].max() == 255
    with open_array(dark) as reader:
        assert not reader.has_gaps


def test_windows_of_which_only_some_hold_nan_make_a_batch(tmp_path, labels):
    pixels = measured(np.float32)
    pixels[20, 20] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    data = WindowDataset(ImageSources([(tmp_path / "a.tif", labels)]), 16, sampling="grid")
    samples = [data[index] for index in range(4)]
    assert [len(sample) for sample in samples] == [2, 2, 2, 3]
    _, _, extras = default_collate(with_masks(samples))
    assert (~extras["pixel_mask"]).nonzero().tolist() == [[3, 4, 4]]


@pytest.mark.parametrize(("suffix", "is_hidden"), [("png", True), ("webp", True), ("tif", False)])
def test_bands_without_opacity(tmp_path, suffix, is_hidden):
    """What is wholly transparent in a PNG or WebP holds nothing; the fourth band of a TIFF may be an infrared."""
    stored = np.full((8, 8, 4), 200, np.uint8)
    stored[:4, :, 3], stored[4, :, 3] = 0, 3
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(stored).save(path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    for bands, channels in (([1, 2, 3], 3), ([2], 1)):
        with open_image(path, bands=bands) as reader:
            read = reader.read_masked(0, 0, 8, 8)
            assert reader.has_gaps == is_hidden
        assert np.ma.getdata(read).shape == (8, 8, channels) and (np.ma.getdata(read) == 200).all()
        assert np.ma.getmaskarray(read)[:4].all() == is_hidden and not np.ma.getmaskarray(read)[4:].any()
    with open_image(path, bands=[1, 4]) as reader:
        assert not np.ma.getmaskarray(reader.read_masked(0, 0, 8, 8)).any()
