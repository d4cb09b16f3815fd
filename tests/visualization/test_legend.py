"""A legend's colours are those of the overlay it stands beside, in plots and in pictures."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from castvision.visualization.legend import MOST_ENTRIES, Entry, add_legend, class_entries, with_legend
from castvision.visualization.pictures import cluster_colours, overlay_mask

GREY = np.full((64, 64, 3), 120, np.uint8)


@pytest.mark.parametrize("untinted", [None, 0])
def test_an_entry_has_the_colour_of_the_overlay(untinted):
    mask = np.repeat(np.array([[-1, 0, 1, 2]]), 4, axis=0)
    full = overlay_mask(GREY, mask, opacity=1.0, untinted=untinted)
    entries = class_entries([0, 1, 2, -1], ["water", "land", "wood"], untinted)
    assert [entry.text for entry in entries] == ["water", "land", "wood", "ignored"]
    for label, entry in enumerate(entries[:3]):
        seen = tuple(full[8, 16 * (label + 1) + 8].tolist())
        assert seen == ((120,) * 3 if label == untinted else entry.colour)
        assert (entry.colour is None) is (label == untinted)
    assert full[8, 8].max() < 60 and max(entries[3].colour) < 60  # dark, as the legend says


def test_colours_do_not_depend_on_which_classes_occur():
    names = [f"class {number}" for number in range(40)]
    few, many = class_entries([7], names, None), class_entries(range(40), names, None)
    assert few[0].colour == many[7].colour == tuple(cluster_colours(40)[7].tolist())
    assert len(many) == MOST_ENTRIES + 1 and many[-1] == Entry("and 20 more", None)


def test_a_picture_stays_where_it_is_and_its_legend_stands_beside():
    entries = class_entries([0, 1], ["background", "été $x_{ 猫"], 0)
    result = with_legend(GREY, entries)
    np.testing.assert_array_equal(result[:64, :64], GREY)
    beside = result[:, 64:]
    assert result.dtype == np.uint8 and beside.shape[1] > 40
    assert (beside == np.array(entries[1].colour)).all(axis=-1).sum() > 80
    assert with_legend(GREY, []) is GREY
    low = with_legend(GREY[:4], class_entries(range(9), list("abcdefghi"), None))
    assert low.shape[0] > 100 and (low[4:, :64] == 255).all()  # higher than the picture


def test_plots_have_the_same_legend():
    figure = Figure(layout="constrained")
    entries = class_entries([0, 1, -1], ["background", "$road_{"], 0, "no data")
    add_legend(figure, entries)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["background", "$road_{", "no data"]
    faces = [patch.get_facecolor() for patch in legend.get_patches()]
    assert faces[0][3] == 0
    assert tuple(round(255 * part) for part in to_rgb(faces[1])) == entries[1].colour
    add_legend(figure, [])
    assert len(figure.legends) == 1
