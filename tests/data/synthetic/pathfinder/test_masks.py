"""Masks fit the label, the dots and the image."""

from __future__ import annotations

import numpy as np
import pytest

from castvision.data.synthetic.pathfinder import PathfinderSpec, make_pathfinder


@pytest.mark.parametrize(("size", "contour_length"), [(32, 6), (32, 14), (128, 9), (48, 6)])
def test_masks_fit_the_label_and_the_dots(size: int, contour_length: int) -> None:
    spec = PathfinderSpec.lra(size, contour_length, "clean")
    for index in range(12):
        sample = make_pathfinder(spec, 0, "train", index)
        long_paths = (sample.instances == 1) | (sample.instances == 2)
        assert set(np.unique(sample.semantic)) == ({0, 1, 2} if sample.label else {0, 1})
        assert (sample.semantic[long_paths] > 0).all()
        assert (sample.image[sample.instances > 0] > 0).all()
        assert 0 <= sample.ordinal[sample.semantic > 0].min() and sample.ordinal.max() == 1
        assert (sample.ordinal[sample.semantic == 0] == -1).all()
        ends = [0, 1, 2 * contour_length - 2, 2 * contour_length - 1]
        tips = {tuple(sample.paddles[row, 2:4]): sample.paddles[row, 0] for row in ends}
        assert (tips[tuple(sample.dots[0])] == tips[tuple(sample.dots[1])]) == bool(sample.label)
        for y, x in sample.dots:
            assert sample.endpoints[y, x] == 1
            assert sample.gap_free[y, x] == sample.semantic[y - 1 : y + 2, x - 1 : x + 2].max() == 1 + sample.label


def components(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """8-connected parts of a mask."""
    left, parts = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        front, part = [left.pop()], set()
        while front:
            y, x = front.pop()
            part.add((y, x))
            around = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= around
            front.extend(around)
        parts.append(part)
    return parts


def test_a_gap_free_path_is_one_piece_from_dot_to_dot() -> None:
    for size in (32, 64):
        for index in range(20):
            sample = make_pathfinder(PathfinderSpec.lra(size, 9), 1, "test", index, label=1)
            parts = components(sample.gap_free == 2)
            assert len(parts) == 1 and {tuple(map(int, dot)) for dot in sample.dots} <= parts[0]


def test_forcing_the_label_keeps_the_paths() -> None:
    spec = PathfinderSpec.lra(32, 6)
    joined, apart = (make_pathfinder(spec, 0, "train", 4, label=label) for label in (1, 0))
    assert (joined.label, apart.label) == (1, 0)
    assert np.array_equal(joined.semantic > 0, apart.semantic > 0)
