"""One image looks the same in every command: 8 or 16 bits, dark or in other units, with holes or without."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from castvision.data import open_array
from castvision.data.reading.pixels import display_limits, mark_missing, to_picture
from castvision.data.transforms.model_input import to_model_input
from castvision.inference.writers.preview import overlay_preview
from castvision.visualization import run_report
from castvision.visualization.pictures import cluster_colours, display_picture
from castvision.visualization.plots import as_png, plot_samples, visible
from castvision.visualization.run_report import Examples, save_report

SIDE = 400
SHAPE = SIDE, SIDE, 3
LIGHT = np.random.default_rng(0).random(SHAPE)
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[:150, :200] = True

IMAGES = {
    "8 bits": (LIGHT * 255).astype(np.uint8),
    "dark, 8 bits": (LIGHT * 30).astype(np.uint8),
    "12 of 16 bits": (LIGHT * 4095).astype(np.uint16),
    "16 bits": (LIGHT * 65535).astype(np.uint16),
    "Kelvin": (250 + 60 * LIGHT).astype(np.float32),
    "reflectance": (LIGHT * 0.9).astype(np.float32),
}


def as_input(image):
    """What training gives a model, its statistics, and where it holds data."""
    keeps = image.dtype.kind == "f"
    mean, std = ((280.0,) * 3, (20.0,) * 3) if keeps else ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    known = ~np.ma.getmaskarray(image).any(axis=-1)
    return to_model_input(image, 3, mean, std, keep_units=keeps)[None], mean, std, torch.from_numpy(known)[None]


@pytest.mark.parametrize("has_hole", [False, True])
@pytest.mark.parametrize("kind", IMAGES)
def test_as_a_file_and_as_a_models_input(kind, has_hole):
    image = IMAGES[kind]
    if has_hole:  # of the brightest value there is, which would leave no contrast to the rest
        brightest = 65504 if image.dtype.kind == "f" else np.iinfo(image.dtype).max
        filled = np.where(HOLE[..., None], image.dtype.type(brightest), image)
        image = mark_missing(filled, ~HOLE[..., None])
    (shown,) = visible(*as_input(image))
    as_file = display_picture(image)
    assert np.abs(shown.astype(int) - as_file).max() <= 1
    assert as_file[~HOLE].std() > 60 and as_file[~HOLE].max() > 220  # visible
    if has_hole:
        assert (as_file[HOLE] == 0).all() and (shown[HOLE] == 0).all()
        np.testing.assert_array_equal(as_file[~HOLE], to_picture(IMAGES[kind][~HOLE]))  # it never entered the stretch


def test_depth_does_not_change_a_picture():
    eight = IMAGES["8 bits"]
    np.testing.assert_array_equal(to_picture(eight), eight)
    np.testing.assert_array_equal(to_picture(eight.astype(np.uint16) * 257), eight)


def test_limits_by_hand():
    assert display_limits(np.array([0.0, 0.3])) == (0, 1)
    assert display_limits(np.array([0.0, 0.2])) == pytest.approx((0.0002, 0.1998))
    assert display_limits(np.array([np.nan, 5.0, 5.0])) == (5, 5)
    assert display_limits(np.array([0.1, 0.1])) == (0, 1)
    assert display_limits(np.array([np.nan])) == (0, 1)
    assert display_limits(np.array([-40.0, 40.0])) == pytest.approx((-39.92, 39.92))


class Sink:
    """Labels as `overlay_preview` reads them."""

    def __init__(self, labels):
        self.labels, self.shape = labels, labels.shape

    def read(self, y, x, height, width, step):
        return self.labels[y : y + height : step, x : x + width : step]


def has_colour(picture, colour):
    return (np.abs(picture.astype(int) - colour).max(axis=-1) <= 1).sum() > 50


@pytest.mark.parametrize(("names", "is_first_tinted"), [(["water", "land"], True), (["background", "land"], False)])
def test_legends_and_colours_are_the_same_in_every_command(tmp_path, monkeypatch, names, is_first_tinted):
    image = IMAGES["12 of 16 bits"]
    mask = np.zeros((SIDE, SIDE), np.int64)
    mask[200:], mask[:20] = 1, 255
    inputs, mean, std, known = as_input(image)
    target = torch.from_numpy(mask)[None]
    sheet = plot_samples(visible(inputs, mean, std, known), target, ["a"], names, "sheet")
    overlay = overlay_preview(open_array(image), Sink(mask.astype(np.uint8)), nodata=255, names=names)
    drawn = []
    monkeypatch.setattr(run_report, "add_legend", lambda figure, entries: drawn.append(entries))
    examples = Examples(inputs, target, target, mean, std, known)
    save_report(tmp_path / "report.png", "run", {}, torch.eye(2), names, examples)
    assert [entry.text for entry in drawn[0]] == [*names, "ignored (255)"]
    pictures = [np.asarray(Image.open(io.BytesIO(as_png(sheet))).convert("RGB")), overlay]
    for picture in pictures:
        assert has_colour(picture, cluster_colours(2)[1])
        assert has_colour(picture, cluster_colours(2)[0]) == is_first_tinted
    first = drawn[0][0].colour
    assert (first is None) is not is_first_tinted
    assert first is None or first == tuple(cluster_colours(1)[0].tolist())
    assert [text.get_text() for text in sheet.legends[0].get_texts()] == [*names, "ignored (255)"]


def test_the_report_shows_what_is_ignored_as_such(tmp_path):
    inputs, mean, std, _ = as_input(IMAGES["12 of 16 bits"])
    target = torch.full((1, SIDE, SIDE), 255)
    examples = Examples(inputs, target, target * 0, mean, std)
    save_report(tmp_path / "a.png", "x", {}, torch.eye(2), ["water", "land"], examples)
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert not has_colour(picture[picture.shape[0] // 3 :], cluster_colours(1)[0])  # nothing of class 0
