"""A command is refused early only if it could not do a single image; see test_contents.py for what is refused."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from PIL import Image

from castvision.models.shipped import shipped_names
from castvision_cli.early.images import Told, areas_fit, check_images, check_of_pixels, told_of
from tests.inference.prediction_cases import NAMES


def test_one_that_can_be_read_is_enough(tmp_path, monkeypatch):
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        path.write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read image .*a\.png"):
        check_images(paths, None)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(paths[2])
    check_images(paths, None)
    with pytest.raises(ValueError, match=r"a\.png"):
        check_images(paths, None, bands=[4])
    monkeypatch.setattr("castvision_cli.early.images._LOOKED_AT", 2)
    check_images(paths, None, bands=[4])  # what is wrong with the last one is not known
    check_images([], None)


def test_a_large_photograph_is_not_decoded_twice(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_text("hello")
    monkeypatch.setattr("castvision_cli.early.images._SMALL", 4)
    check_images([tmp_path / "a.png"], None)


def test_a_mask_of_where_to_work_that_does_not_fit(tmp_path):
    for name, size in (("image", (40, 60)), ("area", (4, 6)), ("turned", (60, 40))):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"{name}.png")
    image, looked = tmp_path / "image.png", []
    for area in ("area", "turned"):
        look = areas_fit({image: tmp_path / f"{area}.png"}, lambda path, reader: looked.append(path))
        if area == "area":
            check_images([image], None, look=look)
    with pytest.raises(ValueError, match=r"proportions of its image .*image\.png', 40 × 60 .* in .*turned\.png'"):
        check_images([image], None, look=look)
    assert looked == [image, image]


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_options_of_pixels_for_a_model_of_whole_images(task):
    given = argparse.Namespace(tile=64, tta="d4", geojson=False, min_area=1)
    with pytest.raises(ValueError, match="m classifies whole images: it takes no --tile, --tta; leave it out"):
        check_of_pixels(given, Told("m", task))
    check_of_pixels(given, Told("m", "segmentation"))
    check_of_pixels(given, None)
    check_of_pixels(argparse.Namespace(tile=None, tta="none"), Told("m", task))


def test_what_is_told_of_a_model(tmp_path, segmenter):
    told = told_of(str(segmenter))
    assert told is not None
    assert (told.task, told.class_names) == ("segmentation", tuple(NAMES))
    assert told.seen is not None
    assert told.seen.in_chans == 3
    named = told_of("vit_tiny_patch16_224")
    assert named is not None
    assert named.task is None
    (tmp_path / "a.onnx").write_bytes(b"1")
    for source in (str(tmp_path), str(tmp_path / "a.onnx"), "hf-hub:any/model"):
        assert told_of(source) is None
    for name in shipped_names():
        shipped = told_of(name)
        assert shipped is not None and shipped.class_names and shipped.seen is not None
