from __future__ import annotations

import numpy as np
import pytest

from castvision.inference.tiling import make_grid


def test_a_small_grid_by_hand():
    grid = make_grid((10, 21), 8, 4, 1)
    assert [(s.start, s.stop, s.low, s.done, s.high) for s in grid.rows] == [(0, 8, 0, 5, 7), (2, 10, 5, 10, 10)]
    assert [(s.start, s.low, s.done, s.high) for s in grid.cols] == [
        (0, 0, 5, 7), (4, 5, 9, 11), (8, 9, 13, 15), (12, 13, 17, 19), (13, 17, 21, 21)
    ]  # fmt: skip
    assert grid.band(1)[4].margins == (3, 4, 0, 0)
    assert len(grid) == 10
    assert grid.zone == 2


def test_images_smaller_than_a_tile_take_one():
    grid = make_grid((3, 8), 8, 4, 1)
    (tile,) = grid.band(0)
    assert (tile.y.stop, tile.y.high, tile.margins) == (8, 3, (0, 0, 5, 0))


@pytest.mark.parametrize(("tile", "overlap", "halo"), [(16, 0, 0), (16, 8, 0), (16, 10, 5), (17, 6, 1), (9, 8, 4)])
def test_every_pixel_is_used_once_or_twice_and_completed_once(tile, overlap, halo):
    for length in range(1, 120):
        grid = make_grid((length, 1), tile, overlap, halo)
        used, completed = np.zeros(length, int), np.zeros(length, int)
        for place, span in enumerate(grid.rows):
            assert span.stop - span.start == tile
            assert span.start <= span.low <= span.done <= span.high <= span.stop
            assert span.stop <= max(length, tile)
            assert place == 0 or span.low - span.start >= halo
            assert place == len(grid.rows) - 1 or (span.stop - span.high, span.high - span.done) == (halo, grid.zone)
            used[span.low : span.high] += 1
            completed[span.low : span.done] += 1
        assert (completed == 1).all()
        assert used.min() == 1
        assert used.max() <= 2
        assert (used == 2).sum() == grid.zone * (len(grid.rows) - 1)
