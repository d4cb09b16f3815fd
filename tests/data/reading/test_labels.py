from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image

from castvision.data.reading.labels import LabelMap, check_same_size, mark_ignored
from castvision.data.reading.whole import read_image

NAMES = ["background", "road", "water"]


def test_a_palette_keeps_its_indices(palette_png):
    path = palette_png()
    assert LabelMap(NAMES).read(path).tolist() == [[0, 1], [2, 255]]
    assert read_image(path)[..., 0].tolist() == [[255, 254], [253, 0]]  # as an image it has colours
    by_colour = LabelMap(NAMES, {"#ff004d": 0, "254,1,77": 1, "#fd024d": "water", "#00ff4d": "ignore"})
    assert by_colour.read(path).tolist() == [[0, 1], [2, 255]]


def test_a_palette_in_a_tiff_and_bilevel_masks(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 1]], dtype=np.uint8)).convert("P")
    image.putdata([0, 1, 2, 1])
    image.save(tmp_path / "mask.tif")
    assert LabelMap(NAMES).read(tmp_path / "mask.tif").tolist() == [[0, 1], [2, 1]]
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "mask.png")
    assert LabelMap(NAMES).read(tmp_path / "mask.png").tolist() == [[0, 1]]


def test_16_bit_labels_are_translated(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", np.array([[0, 300], [65535, 300]], dtype=np.uint16))
    labels = LabelMap(NAMES, {0: 0, 300: "road", 65535: "ignore"})
    assert labels.read(tmp_path / "mask.tif").tolist() == [[0, 1], [255, 1]]
    with pytest.raises(ValueError, match=r"expected labels 0, 1, 2, 255 in the mask .*mask\.tif.* got 300, 65535; .*"):
        LabelMap(NAMES).read(tmp_path / "mask.tif")


def test_every_unknown_label_is_named_with_the_file_and_the_remedy():
    with pytest.raises(
        ValueError, match=r"'a\.png' for 3 classes, got 3, 7; translate them by label_map, such as \{'3'"
    ):
        LabelMap(NAMES).apply(np.array([[3, 0, 7, 7]], dtype=np.uint8), "a.png")
    with pytest.raises(ValueError, match="got -1"):
        LabelMap(NAMES).apply(np.array([[-1, 0]], dtype=np.int32), "a.tif")
    with pytest.raises(ValueError, match="JPEG changes labels"):
        LabelMap(NAMES).apply(np.array([[3]], dtype=np.uint8), "a.jpg")


def test_a_label_missing_from_the_map_is_unknown():
    with pytest.raises(ValueError, match="got 1;"):
        LabelMap(NAMES, {0: 0, 2: 2}).apply(np.array([[0, 1, 2]], dtype=np.uint8), "a.png")


def test_grey_saved_as_rgb_counts_and_colours_without_a_map_are_listed():
    grey = np.repeat(np.array([[0, 2]], dtype=np.uint8)[..., None], 3, axis=-1)
    assert LabelMap(NAMES).apply(grey, "a.png").tolist() == [[0, 2]]
    with pytest.raises(ValueError, match=r"got colours \(0, 0, 0\), \(9, 0, 0\); give a label map"):
        LabelMap(NAMES).apply(np.array([[[0, 0, 0], [9, 0, 0]]], dtype=np.uint8), "a.png")


def test_masks_of_other_kinds_are_refused():
    with pytest.raises(ValueError, match=r"expected whole numbers in the mask 'a\.tif', got float32"):
        LabelMap(NAMES).apply(np.zeros((2, 2), np.float32), "a.tif")
    with pytest.raises(ValueError, match="expected 8-bit RGB"):
        LabelMap(NAMES, {"#000000": 0}).apply(np.zeros((2, 2), np.uint8), "a.png")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({}, "of numbers or of colours"),
        ({0: 0, "#ff0000": 1}, "of numbers or of colours"),
        ({0: 3}, r"expected a class 0\.\.2, its name \(background, road, water\) or 'ignore', got 3"),
        ({0: "raod"}, "got 'raod'"),
        ({"red": 1}, "expected a colour"),
    ],
)
def test_label_maps_are_checked(mapping, message):
    with pytest.raises(ValueError, match=message):
        LabelMap(NAMES, mapping)


def test_numbers_may_be_written_as_text():
    assert LabelMap(NAMES, {"4": "road"}).apply(np.array([[4]], np.uint8), "a").tolist() == [[1]]


def test_another_size_than_the_image_names_both():
    with pytest.raises(ValueError, match=r"'i\.png' with 4 × 6 \(height × width\) and 'm\.png' with 6 × 4"):
        check_same_size(np.zeros((4, 6, 3)), np.zeros((6, 4)), "i.png", "m.png")


def test_labels_without_a_map():
    labels = np.array([[0, 2, 3], [-1, 255, -9]], np.int16)
    marked, is_unknown = mark_ignored(labels, nodata=-9, num_classes=3)
    assert marked.tolist() == [[0, 2, 3], [-1, 255, 255]]
    assert is_unknown.tolist() == [[False, False, True], [True, False, False]]
    marked, is_unknown = mark_ignored(np.array([[0, 254, 255, 256]], np.uint16), None, None)
    assert marked.tolist() == [[0, 254, 255, 256]] and is_unknown.tolist() == [[False, False, False, True]]
