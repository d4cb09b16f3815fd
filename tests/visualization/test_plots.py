from __future__ import annotations

import io
import sys
from subprocess import run

import numpy as np
import pytest
from PIL import Image

from castvision.visualization.legend import shorten
from castvision.visualization.plots import (
    Panel,
    as_png,
    plot_classification,
    plot_grid,
    plot_rows,
    plot_segmentation,
)

PICTURE = np.full((40, 60, 3), (250, 20, 20), np.uint8)


def drawn(figure):
    return np.asarray(Image.open(io.BytesIO(as_png(figure))).convert("RGB")).astype(int)


def red_share(pixels):
    return ((pixels[..., 0] > 200) & (pixels[..., 1] < 60)).mean()


def texts_inside(figure):
    """Every visible text lies inside the canvas: nothing is cut."""
    as_png(figure)
    width, height = figure.bbox.size
    shown = [
        *figure.texts,
        *(axis.title for axis in figure.axes),
        *(text for axis in figure.axes for text in axis.texts),
    ]
    shown += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [text.get_window_extent() for text in shown if text.get_text()]
    return all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)


def test_grid_shows_every_panel_and_cuts_no_title():
    panels = [
        Panel(f"blocks.{place}\n1,024 content clusters, windows of 16 × 16\n20 without a token", PICTURE)
        for place in range(5)
    ]
    figure = plot_grid(panels, "a heading\nof two lines", columns=4)
    assert red_share(drawn(figure)) > 0.25
    assert texts_inside(figure)
    assert len(figure.axes) == 8


def test_contact_sheet_of_rows_of_different_length_and_shape():
    tall = np.full((90, 30, 3), (250, 20, 20), np.uint8)
    figure = plot_rows([[Panel("a", PICTURE), Panel("b", PICTURE)], [Panel("c", tall)]], "sheet")
    assert red_share(drawn(figure)) > 0.15
    assert texts_inside(figure)


def test_long_sheets_stay_within_what_can_be_drawn():
    pixels = drawn(plot_rows([[Panel("a", PICTURE)]] * 40, "sheet"))
    assert max(pixels.shape) < 65536


def test_classification_bars_are_as_long_as_the_probabilities():
    figure = plot_classification(PICTURE, ["cat", "$dog_{"], [0.75, 0.25], "heading")
    assert [bar.get_width() for bar in figure.axes[1].patches] == [0.75, 0.25]
    shown = [text.get_text() for text in figure.axes[1].texts]
    assert shown == ["cat  0.750", "$dog_{  0.250"]
    assert texts_inside(figure)


def test_segmentation_legend_names_present_classes():
    mask = np.zeros((10, 10), np.int64)
    mask[:3] = 2
    figure = plot_segmentation(PICTURE, PICTURE, mask, ["ground", "tree", "road"], "heading", untinted=0)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["ground 0.700", "road 0.300"]
    assert texts_inside(figure)


def test_names_the_font_lacks_do_not_warn():
    drawn(plot_grid([Panel("猫 $x^", PICTURE)], "猫"))  # warnings are errors here


def test_shorten_keeps_both_ends():
    assert shorten("short.png", 20) == "short.png"
    short = shorten("a_very_long_file_name_of_a_camera_0001.png", 20)
    assert len(short) == 20
    assert short.startswith("a_very")
    assert short.endswith("0001.png")
    assert shorten("stra\udcdfe ü\nm.png", 30) == "stra\ufffde ü\nm.png"  # a byte of a name that is no text


def test_nothing_to_draw():
    with pytest.raises(ValueError, match="at least one panel"):
        plot_grid([], "x")
    with pytest.raises(ValueError, match="non-empty rows"):
        plot_rows([[]], "x")


def test_matplotlib_is_imported_late():
    code = "import castvision.visualization.plots, sys; sys.exit('matplotlib' in sys.modules)"
    assert run([sys.executable, "-c", code], check=False).returncode == 0
