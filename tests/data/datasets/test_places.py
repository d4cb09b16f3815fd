"""Masks that state to lie on other ground than their images are refused at every door."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile

from castvision.data import Georeference, open_image
from castvision.data.datasets.segmentation import Pair, SegmentationDataset
from castvision.data.datasets.sources import ImageSources
from castvision.data.reading.georeference import epsg_keys
from castvision.data.reading.labels import ClassReader, LabelMap
from castvision.inference.scale import mask_at_level
from castvision.inference.tile_source import Skip, TileSource

PLACE = (0.5, 0.0, 500000.0, 0.0, -2.0, 5400000.0)
LABELS = LabelMap(["background", "road"])


def save(path, place=PLACE, code=32633, size=(32, 40)):
    ground = Georeference(place, None, () if code is None else epsg_keys(code, False))
    tags = None if place is None else ground.extratags()
    tifffile.imwrite(path, np.ones(size, np.uint8), photometric="minisblack", metadata=None, extratags=tags)
    return path


def read_training(image, mask):
    SegmentationDataset([Pair(image, mask)], LABELS).read(0)


def read_windows(image, mask):
    ImageSources([(image, mask)])


def read_evaluation(image, mask):
    with open_image(image) as reader, ClassReader(mask, LABELS) as classes:
        mask_at_level(classes, reader, 0)


def read_foreground(image, mask):
    with open_image(image) as reader, open_image(mask) as where:
        TileSource(reader, 0, Skip(where))


DOORS = [read_training, read_windows, read_evaluation, read_foreground]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    "place",
    [
        (0.5, 0.0, 500010.0, 0.0, -2.0, 5400000.0),
        (0.5, 0.0, 500000.0, 0.0, 2.0, 5399936.0),
        (2.0, 0.0, 5e5, 0.0, -2.0, 5.4e6),
    ],
    ids=["aside", "upside down", "other pixels"],
)
def test_a_mask_of_other_ground(tmp_path, door, place):
    image, mask = save(tmp_path / "a.tif"), save(tmp_path / "b.tif", place)
    with pytest.raises(ValueError, match=r"expected image and mask of one place, got .*a\.tif.*b\.tif.* pixels apart"):
        door(image, mask)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("place", "code"),
    [
        (PLACE, 32633),
        (PLACE, 25833),
        ((0.5, 0.0, 500000.2, 0.0, -2.0, 5400000.9), 32633),
        ((1, 0, 0, 0, -1, 32), None),
        (None, None),
    ],
    ids=["the same", "another name of the system", "half a pixel", "no system", "no place"],
)
def test_a_mask_that_may_lie_there(tmp_path, door, place, code):
    door(save(tmp_path / "a.tif"), save(tmp_path / "b.tif", place, code))


def test_a_mask_of_coarser_pixels_may_say_where_to_work(tmp_path):
    image = save(tmp_path / "a.tif")
    read_foreground(image, save(tmp_path / "b.tif", (5.0, 0.0, 5e5, 0.0, -20.0, 5.4e6), size=(3, 4)))
