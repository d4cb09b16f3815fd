"""Training ground that is held out, too, is said."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import tifffile

from castvision.data.datasets.overlap import ground_of_regions, warn_of_overlap
from castvision.data.datasets.regions import Block
from castvision.data.datasets.sources import ImageSources
from castvision.data.reading.georeference import Georeference, epsg_keys
from castvision.training import SegmentationDataModule, WindowDataModule

SIZE = (40, 60)
WHOLE = Block(0, 0, *SIZE)


@pytest.fixture
def tile(tmp_path):
    """A tile of 10 m pixels whose upper left corner is (x, y)."""

    def write(name, x=500000.0, y=5400000.0, code=32633, turned=0.0):
        ground = Georeference((10.0, turned, x, turned, -10.0, y), None, () if code is None else epsg_keys(code, False))
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(len(name)).integers(1, 255, (*SIZE, 3), dtype=np.uint8)
        tags = ground.extratags() if code is not None or turned or x else None
        tifffile.imwrite(path, pixels, photometric="rgb", metadata=None, extratags=tags)
        return path

    return write


def told(caplog, paths, splits):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "castvision"):
        sources = ImageSources([(path, None) for path in paths])
        warn_of_overlap({split: ground_of_regions(sources, parts) for split, parts in splits.items()})
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("other", "share"),
    [
        ({}, 100),
        ({"x": 500300.0}, 50),  # half of its 600 m
        ({"x": 500300.0, "y": 5400200.0}, 25),
        ({"x": 499990.0}, 98),
        ({"x": 500600.0}, None),  # the next tile
        ({"x": 500595.0}, None),  # whose grid is half a pixel off
        ({"code": 32634}, None),
        ({"code": None}, None),
        ({"turned": 1.0}, None),
    ],
    ids=str,
)
def test_how_much_of_a_held_out_tile_is_trained_on(tile, caplog, other, share):
    paths = [tile("a.tif"), tile("b.tif", **other)]
    found = told(caplog, paths, {"train": [(0, WHOLE)], "val": [(1, WHOLE)]})
    if share is None:
        assert found == []
    else:
        assert found == [
            "1 of 1 held-out images or squares lie on ground of training images, such as "
            f"{share} % of {str(paths[1])!r}: figures of held-out images will be too good; put images of one place "
            "into one split"
        ]


def test_squares_of_one_image_lie_apart(tile, caplog):
    left, right = Block(0, 0, 40, 30), Block(0, 30, 40, 30)
    assert told(caplog, [tile("a.tif")], {"train": [(0, left)], "val": [(0, right)]}) == []
    splits = {"train": [(0, left)], "val": [(0, right), (1, left)], "test": [(1, right)]}
    (found,) = told(caplog, [tile("a.tif"), tile("b.tif", x=500150.0)], splits)
    assert found.startswith("1 of 3 held-out images or squares lie on ground of training images, such as 50 % of")


def test_training_says_it(tile, tmp_path, caplog):
    for split, x in (("train", 500000.0), ("val", 500100.0)):
        tile(f"{split}/images/{split}.tif", x)
        (tmp_path / split / "masks").mkdir()
        labels = np.random.default_rng(0).integers(0, 2, SIZE, dtype=np.uint8)
        tifffile.imwrite(tmp_path / split / f"masks/{split}.tif", labels)
    makers = [
        lambda: WindowDataModule(str(tmp_path), 32, train_length=16, class_names=["a", "b"], num_workers=0),
        lambda: SegmentationDataModule(str(tmp_path), img_size=32, num_workers=0),
    ]
    for make in makers:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "castvision"):
            make()
        assert "1 of 1 held-out images or squares lie on ground of training images, such as 83 % of" in caplog.text
