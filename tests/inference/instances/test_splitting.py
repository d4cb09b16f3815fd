from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from skimage import measure
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from castvision.inference.instances import splitting
from castvision.inference.instances.finding import InstanceOptions, find_instances
from castvision.inference.instances.splitting import split_mask
from tests.inference.instances.map_cases import discs, in_bands_of, stored, whole


def disc(size, row, column, radius):
    y, x = np.mgrid[: size[0], : size[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def test_two_discs_that_touch_are_two_and_an_ellipse_is_one():
    pair = disc((41, 71), 20, 20, 15) | disc((41, 71), 20, 45, 15)
    parts = split_mask(pair, 1.0)
    assert np.unique(parts).tolist() == [0, 1, 2]
    assert ((parts > 0) == pair).all()
    left, right = parts[20, 20], parts[20, 45]
    assert left != right
    assert (parts[:, :32][pair[:, :32]] == left).all()
    assert (parts[:, 34:][pair[:, 34:]] == right).all()
    y, x = np.mgrid[:41, :81]
    for angle in (0.0, 0.4, np.pi / 4):
        along = (x - 40) * np.cos(angle) + (y - 20) * np.sin(angle)
        across = (y - 20) * np.cos(angle) - (x - 40) * np.sin(angle)
        assert split_mask((along / 22) ** 2 + (across / 11) ** 2 <= 1, 1.0).max() == 1


def test_the_depth_says_how_narrow_a_neck_must_be():
    """Two squares of half width 10, joined by a bar of half width 6: 4 pixels less on each side."""
    mask = np.zeros((30, 70), bool)
    mask[5:25, 2:22] = mask[5:25, 48:68] = True
    mask[9:21, 20:50] = True
    assert split_mask(mask, 3.5).max() == 2
    assert split_mask(mask, 4.5).max() == 1


@pytest.mark.parametrize("rows", [1, 13, 1000])
def test_the_map_is_cut_as_scikit_image_cuts_the_whole(tmp_path, monkeypatch, rows):
    """Bands make no difference, nor does reading each component alone: the same parts as the whole mask's."""
    labels = np.pad(discs(), 1)
    in_bands_of(monkeypatch, rows, labels.shape[1])
    found = find_instances(stored(tmp_path / "labels", labels), InstanceOptions("watershed", depth=1.1), [1])
    ids = whole(found.ids)
    distance = distance_transform_edt(labels)
    # not h_maxima, which takes two equally high tops on one plateau for two
    tops = measure.label(local_maxima(reconstruction(distance - 1.1, distance)) & (labels > 0))
    expected = watershed(-distance, tops, mask=labels > 0)
    assert len(found) == expected.max() > measure.label(labels, connectivity=1).max() + 10
    whole_of = np.array([np.bincount(expected[ids == number]).argmax() for number in range(len(found) + 1)])
    assert len(np.unique(whole_of)) == len(found) + 1
    assert (whole_of[ids] == expected).mean() > 0.999  # pixels as near to one top as to another go to either


def test_components_too_large_for_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(splitting, "MOST_PIXELS", 500)
    labels = stored(tmp_path / "labels", np.ones((40, 30), np.uint8))
    with pytest.raises(ValueError, match=r"an object of 40 × 30 pixels is too large to be split .* --things"):
        find_instances(labels, InstanceOptions("watershed"), [1])
    assert len(find_instances(labels, InstanceOptions("components"), [1])) == 1


def test_without_scikit_image_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr(splitting, "find_spec", lambda name: None)
    for how in ("watershed", "centres"):
        with pytest.raises(ImportError, match=r"--instances \w+ needs scikit-image: pip install 'castvision\[instan"):
            InstanceOptions(how)
    InstanceOptions("components")
