"""Mirrors and quarter turns of images and of places in them."""

from __future__ import annotations

import itertools

import pytest
import torch

from castvision.data.transforms.symmetries import Symmetry

ALL = [Symmetry(turns, is_flipped) for turns, is_flipped in itertools.product(range(4), (False, True))]


@pytest.mark.parametrize("symmetry", ALL)
def test_a_window_is_found_again_in_the_turned_image(symmetry):
    image = torch.arange(8 * 20).view(8, 20)
    window = torch.tensor([2 / 8, 5 / 20, 4 / 8, 10 / 20])
    turned = symmetry.of(image)
    top, left, height, width = symmetry.of_window(window).tolist()
    rows, columns = turned.shape
    first = round(top * rows), round(left * columns)
    found = turned[first[0] : first[0] + round(height * rows), first[1] : first[1] + round(width * columns)]
    assert torch.equal(found, symmetry.of(image[2:6, 5:15]))
    assert torch.equal(symmetry.undo(turned), image)


def test_there_are_eight():
    image = torch.arange(9).view(3, 3)
    assert len({tuple(symmetry.of(image).flatten().tolist()) for symmetry in ALL}) == 8
    assert torch.equal(Symmetry().of(image), image)
