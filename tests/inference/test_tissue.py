from __future__ import annotations

import numpy as np
import pytest

from castvision.data import open_array
from castvision.inference.tissue import find_tissue, tissue_mask


def slide(height=120, width=160):
    """Grey glass with noise, and a disc of pink tissue."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    is_tissue = (y - 60) ** 2 + (x - 90) ** 2 < 40**2
    picture = np.full((height, width, 3), 235, np.int64)
    picture[is_tissue] = (200, 120, 170)
    return (picture + rng.integers(-4, 5, picture.shape)).astype(np.uint8), is_tissue


def test_coloured_pixels_are_tissue():
    picture, truth = slide()
    found = tissue_mask(picture)
    assert (found == truth).mean() > 0.99


def test_glass_alone_and_the_dark_edge_of_a_scan_are_none():
    rng = np.random.default_rng(0)
    glass = (np.full((60, 60, 3), 235) + rng.integers(-4, 5, (60, 60, 3))).astype(np.uint8)
    assert not tissue_mask(glass).any()
    dark = rng.integers(0, 12, (60, 60, 3)).astype(np.uint8)
    assert not tissue_mask(dark).any()


def test_what_holds_no_data_is_none():
    picture, truth = slide()
    gap = np.zeros(truth.shape, bool)
    gap[:, 90:] = True
    found = tissue_mask(np.ma.array(picture, mask=np.repeat(gap[..., None], 3, -1)))
    assert not found[:, 90:].any()
    assert (found == truth)[:, :90].mean() > 0.99


def test_a_slide_is_looked_at_through_a_thumbnail():
    picture, truth = slide()
    large = picture.repeat(20, 0).repeat(20, 1)
    found = find_tissue(open_array(large))
    assert max(found.shape) <= 2048
    rows = np.arange(found.shape[0]) * 120 // found.shape[0]
    cols = np.arange(found.shape[1]) * 160 // found.shape[1]
    assert (found == truth[np.ix_(rows, cols)]).mean() > 0.98


def test_nothing_to_find_is_said():
    with pytest.raises(ValueError, match=r"found no tissue in 'array'.*--mask"):
        find_tissue(open_array(np.full((30, 30, 3), 255, np.uint8)))
    with pytest.raises(ValueError, match=r"expected an RGB slide.*got 1 channel"):
        find_tissue(open_array(np.full((30, 30), 255, np.uint8)))
