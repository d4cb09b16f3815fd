from __future__ import annotations

from pathlib import Path

import numpy as np

from castvision.data.reading.bags import Bag
from castvision.inference.slides import SlideAnswer, attention_grid


def test_weights_lie_where_their_tiles_do_in_islands_of_tissue():
    """The step was the median of those between tiles: gaps shrank, and tiles of two rows shared a cell."""
    cells = np.array([[0, 0], [2, 0], [3, 0], [15, 9], [15, 10]])
    bag = Bag(
        Path("a.h5"),
        np.zeros((5, 4), np.float32),
        224 * cells + 1000,
        {"patch_size": 224, "patch_size_level0": 224, "overlap": 0},
    )
    weights = np.array([0.1, 0.2, 0.3, 0.15, 0.25], np.float32)
    grid = attention_grid(SlideAnswer(bag, np.array([1.0], np.float32), weights))
    assert grid.shape == (11, 16)
    assert np.isfinite(grid).sum() == 5
    np.testing.assert_array_equal(grid[cells[:, 1], cells[:, 0]], weights)
