"""An image's number says which stage it comes from, however it is asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.data.synthetic.pathfinder import PathfinderDataset, PathfinderSpec
from castvision.data.synthetic.pathfinder.curriculum import Curriculum


def _stages() -> list[PathfinderDataset]:
    return [PathfinderDataset(PathfinderSpec.lra(32, length), seed=3) for length in (6, 9, 14)]


def test_each_image_is_its_stages_own_in_any_order() -> None:
    stages = _stages()
    data = Curriculum(stages, [4, 7])
    wanted = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [data.stage_of(index) for index in range(10)] == wanted
    order = [9, 0, 4, 3, 6, 7, 2**30]
    for index, (image, label) in zip(order, data.__getitems__(order), strict=True):
        expected, expected_label = stages[data.stage_of(index)][index]
        assert torch.equal(image, expected) and label == expected_label


def test_paths_grow() -> None:
    data = Curriculum(_stages(), [100, 200])
    ink = np.array([float((data[index][0] > -0.8).float().mean()) for index in (*range(50), *range(200, 250))])
    assert ink[50:].mean() > 1.4 * ink[:50].mean()  # .152 to .095, measured on the public generator's images


@pytest.mark.parametrize("ends", [[4], [4, 7, 9], [7, 4], [4, 4], [0, 4]])
def test_ends_must_grow(ends: list[int]) -> None:
    with pytest.raises(ValueError, match="2 growing numbers"):
        Curriculum(_stages(), ends)
