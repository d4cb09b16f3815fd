from __future__ import annotations

import math

import numpy as np
import pytest
from skimage import measure as measured

from castvision.inference.instances.table import mean_probabilities, measure, vote
from tests.inference.instances.map_cases import blobs, discs, in_bands_of, stored


def numbered(labels):
    return measured.label(np.where(labels == 255, 0, labels), connectivity=1).astype(np.uint32)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_shapes_are_those_of_scikit_image(tmp_path, monkeypatch, rows):
    """Area, box, centroid and perimeter of each object of the whole map, at image borders too."""
    ids = numbered(blobs((90, 80)))
    in_bands_of(monkeypatch, rows, 80)
    count = int(ids.max())
    shapes = measure(stored(tmp_path / "ids", ids), count)
    props = measured.regionprops(ids)
    assert len(props) == count > 50
    assert shapes.pixels[1:].tolist() == [each.area for each in props]
    assert shapes.boxes[1:].tolist() == [list(each.bbox) for each in props]
    np.testing.assert_allclose(shapes.centres[1:], [np.add(each.centroid, 0.5) for each in props])
    crofton = [measured.perimeter_crofton(np.pad(ids == each.label, 1), directions=4) for each in props]
    np.testing.assert_allclose(shapes.perimeters()[1:], crofton)


def test_the_perimeter_of_a_disc_in_ground_units(tmp_path):
    """A circle on the ground, seen in pixels that are twice as wide as high, turned and mirrored."""
    turn = math.radians(33)
    transform = (2 * math.cos(turn), math.sin(turn), 5e5, 2 * math.sin(turn), -math.cos(turn), 4e6)
    a, b, c, d, e, f = transform
    y, x = np.mgrid[:400, :400] + 0.5
    ground_x, ground_y = a * x + b * y + c, d * x + e * y + f
    middle = a * 200 + b * 200 + c, d * 200 + e * 200 + f
    inside = (ground_x - middle[0]) ** 2 + (ground_y - middle[1]) ** 2 <= 150**2
    shapes = measure(stored(tmp_path / "ids", inside.astype(np.uint32)), 1)
    assert shapes.perimeters(transform)[1] == pytest.approx(2 * math.pi * 150, rel=0.02)
    assert shapes.pixels[1] * abs(a * e - b * d) == pytest.approx(math.pi * 150**2, rel=0.002)
    scaled = shapes.perimeters((0.5, 0, 0, 0, 0.5, 0))
    np.testing.assert_allclose(scaled, shapes.perimeters() / 2)


def test_votes_and_scores(tmp_path, monkeypatch):
    ids = np.array([[1, 1, 0, 2], [1, 0, 2, 2]], np.uint32)
    labels = np.array([[3, 1, 0, 1], [3, 0, 3, 1]], np.uint8)
    probabilities = np.linspace(0, 1, 32).reshape(2, 4, 4).astype(np.float32)
    probabilities[0, 2] = np.nan
    in_bands_of(monkeypatch, 1, 4)
    stores = [stored(tmp_path / name, array) for name, array in (("ids", ids), ("labels", labels))]
    classes = vote(*stores, 2, np.array([1, 3]))
    assert classes.tolist() == [-1, 3, 1]
    scores = mean_probabilities(stores[0], stored(tmp_path / "values", probabilities), classes)
    assert math.isnan(scores[0])
    assert scores[1] == pytest.approx(probabilities[ids == 1][:, 3].mean())
    assert scores[2] == pytest.approx(probabilities[ids == 2][:, 1].mean())


def test_nothing_to_measure(tmp_path):
    shapes = measure(stored(tmp_path / "ids", np.zeros((3, 4), np.uint32)), 0)
    assert shapes.pixels.tolist() == [0]
    assert shapes.perimeters().tolist() == [0]
    assert discs().any()
