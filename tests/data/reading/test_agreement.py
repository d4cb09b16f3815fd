"""Masks that belong on their images, and those that do not."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from castvision.data.datasets.objects import NumberedImage, ObjectDataset
from castvision.data.datasets.segmentation import Pair, SegmentationDataset
from castvision.data.datasets.sources import ImageSources
from castvision.data.reading import open_array, open_image, open_mask
from castvision.data.reading.agreement import check_area, check_same_place, check_same_size
from castvision.data.reading.labels import ClassReader, LabelMap
from castvision.inference import tiled_inference
from castvision.inference.scale import mask_at_level
from castvision.inference.tile_source import Skip

UTM33 = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32633)
LABELS = LabelMap(["a", "b"])


@pytest.fixture
def placed(tmp_path):
    """A GeoTIFF of a size whose upper left corner lies at (x, y) ground units; keys None: no coordinate system."""

    def write(name, size=(40, 60), corner=(5e5, 4.6e6), pixel=(10.0, 10.0), keys=UTM33, matrix=None):
        tags = [(33550, "d", 3, (*pixel, 0.0), True), (33922, "d", 6, (0, 0, 0, *corner, 0), True)]
        if matrix is not None:
            tags = [(34264, "d", 16, matrix, True)]
        tags += [] if keys is None else [(34735, "H", len(keys), keys, True)]
        tifffile.imwrite(tmp_path / name, np.ones(size, np.uint8), extratags=tags, metadata=None)
        return tmp_path / name

    return write


def agree(image, mask):
    with open_image(image) as one, open_image(mask) as other:
        check_same_place(other, one)


@pytest.mark.parametrize(
    "same",
    [
        {},
        {"corner": (5e5 + 5, 4.6e6 - 5)},  # half a pixel: a point or an area
        {"corner": (5e5 + 10, 4.6e6)},
        {"size": (4, 6), "pixel": (100.0, 100.0)},
        {"size": (4, 6), "pixel": (100.0, 100.0), "corner": (5e5 + 90, 4.6e6)},  # less than one of its own pixels
        {"size": (80, 120), "pixel": (5.0, 5.0)},
        {"keys": None},  # a world file's place, say
        {"keys": (*UTM33[:-1], 25833)},  # ETRS89 in place of WGS 84: the same metres
        {"keys": None, "corner": (0, 0), "pixel": (1.0, 1.0)},  # a place nobody gave it
    ],
    ids=str,
)
def test_the_same_place_by_a_pixel(placed, same):
    agree(placed("image.tif"), placed("mask.tif", **same))


@pytest.mark.parametrize(
    ("other", "apart"),
    [
        ({"corner": (5e5 + 20, 4.6e6)}, "up to 2 pixels"),
        ({"corner": (5e5, 4.6e6 + 400)}, "up to 40 pixels"),
        ({"pixel": (10.0, 11.0)}, "up to 4 pixels"),
        ({"size": (80, 120)}, "up to 60 pixels"),
        ({"size": (4, 6), "pixel": (100.0, 100.0), "corner": (5e5 + 110, 4.6e6)}, "up to 11 pixels"),
        ({"keys": (1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326), "corner": (15, 41), "pixel": (1e-4, 1e-4)},
         r"apart \(coordinate systems EPSG:32633 and EPSG:4326\)"),
        ({"matrix": (10, 0, 0, 5e5, 0, 10, 0, 4.6e6 - 400, 0, 0, 0, 0, 0, 0, 0, 1)}, "up to 40 pixels"),  # south up
        ({"matrix": (0, 10, 0, 5e5, -10, 0, 0, 4.6e6, 0, 0, 0, 0, 0, 0, 0, 1)}, "up to"),  # turned
    ],
    ids=str,
)  # fmt: skip
def test_another_place_is_refused(placed, other, apart):
    with pytest.raises(ValueError, match=rf"expected .*mask\.tif' to lie where its image .*{apart}.*; warp it to"):
        agree(placed("image.tif"), placed("mask.tif", **other))


def test_without_a_place_sizes_decide(placed, tmp_path):
    tifffile.imwrite(tmp_path / "plain.tif", np.ones((40, 60), np.uint8))
    agree(placed("image.tif"), tmp_path / "plain.tif")
    agree(tmp_path / "plain.tif", placed("mask.tif", corner=(0.0, 7.0)))


def test_every_door_that_brings_a_mask_to_an_image_asks(placed):
    image, mask, moved = placed("image.tif"), placed("mask.tif"), placed("moved.tif", corner=(5e5 + 300, 4.6e6))
    elsewhere = pytest.raises(ValueError, match=r"moved\.tif' to lie where its image .*image\.tif' does")
    assert SegmentationDataset([Pair(image, mask)], LABELS).read(0)[1].all()
    with elsewhere:
        SegmentationDataset([Pair(image, moved)], LABELS).read(0)
    assert ObjectDataset([NumberedImage(image, mask, mask)], LABELS).read(0)[1].all()
    for wrong in (NumberedImage(image, moved, mask), NumberedImage(image, mask, moved)):
        with elsewhere:
            ObjectDataset([wrong], LABELS).read(0)
    assert ImageSources([(image, mask)]).read_labels(0, 0, 0, 40, 60).all()
    with elsewhere:
        ImageSources([(image, moved)])
    with open_image(image) as reader, ClassReader(mask, LABELS) as right, ClassReader(moved, LABELS) as wrong:
        assert mask_at_level(right, reader, 0) is right
        with elsewhere:
            mask_at_level(wrong, reader, 0)
        with open_mask(mask) as area:
            done = tiled_inference(reader, lambda tiles: tiles, tile=32, overlap=8, skip=Skip(area), output="image")
        assert (done.values == 1).all()
        with open_mask(moved) as area, elsewhere:
            tiled_inference(reader, lambda tiles: tiles, tile=32, overlap=8, skip=Skip(area), output="image")


@pytest.mark.parametrize("size", [(40, 60), (4, 6), (400, 600), (13, 20), (14, 20), (13, 21), (1, 1), (79, 121)])
def test_areas_of_any_size_in_the_image_s_proportions(size):
    check_area(open_array(np.ones(size, np.uint8)), open_array(np.zeros((40, 60), np.uint8)))


@pytest.mark.parametrize("size", [(60, 40), (40, 40), (20, 33), (400, 640), (16, 20)])
def test_areas_of_other_proportions_are_refused(size):
    found = f"40 × 60 .*got {size[0]} × {size[1]}"
    with pytest.raises(ValueError, match=f"expected a mask in the proportions of its image .*{found}"):
        check_area(open_array(np.ones(size, np.uint8)), open_array(np.zeros((40, 60), np.uint8)))
    with pytest.raises(ValueError, match="proportions"):
        tiled_inference(np.zeros((40, 60)), lambda tiles: tiles, tile=32, skip=Skip(np.ones(size, np.uint8)))


def test_another_size_than_the_image_names_both():
    with pytest.raises(ValueError, match=r"'i\.png' with 4 × 6 \(height × width\) and 'm\.png' with 6 × 4"):
        check_same_size(np.zeros((4, 6, 3)), np.zeros((6, 4)), "i.png", "m.png")
