from __future__ import annotations

import numpy as np
import pytest

from castvision.data.datasets.coco_shapes import decode_compressed, decode_runs, has_no_area

KNOWN = [
    ("]9?f000000K", [301, 15, 22, 15, 22, 15, 22, 15, 17]),
    ("d0", [20]),
    ("0d0", [0, 20]),
    ("Tl0ZV2\\4fnM000R_7P5", [900, 2250, 140, 160, 140, 160, 140, 7810, 300]),
    ("011000<0D000<", [0, 1, 1, 1, 1, 1, 13, 1, 1, 1, 1, 1, 13]),
]
"""What pycocotools writes of some masks."""


def compress(counts: list[int]) -> str:
    """The text of run lengths, as COCO's reference writes it."""
    text = ""
    for index, count in enumerate(counts):
        value, more = count - (counts[index - 2] if index > 2 else 0), True
        while more:
            piece, value = value & 31, value >> 5
            more = value != (-1 if piece & 16 else 0)
            text += chr(48 + piece + 32 * more)
    return text


@pytest.mark.parametrize(("text", "counts"), KNOWN)
def test_texts_of_the_reference(text, counts):
    assert decode_compressed(text) == counts
    assert compress(counts) == text


@pytest.mark.parametrize("seed", range(5))
def test_masks_come_back_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random((12, 9)) < 0.4, np.ones((7, 30), bool))
    ends = np.flatnonzero(np.diff(mask.T.ravel(), prepend=False, append=~mask[-1, -1]))
    counts = np.diff(ends, prepend=0).tolist()
    np.testing.assert_array_equal(decode_runs(decode_compressed(compress(counts)), mask.shape), mask)


@pytest.mark.parametrize(("text", "message"), [("0 1", "characters 0 to o"), ("1ß", "characters"), ("12P", "within a")])
def test_texts_that_are_no_run_lengths(text, message):
    with pytest.raises(ValueError, match=message):
        decode_compressed(text)


@pytest.mark.parametrize(
    ("polygon", "is_empty"),
    [
        ([], True), ([5, 5], True), ([5, 5, 9, 9], True), ([5, 5, 5, 5, 5, 5], True), ([0, 0, 1, 1, 0, 0], True),
        ([0, 0, 1, 1, 3, 3, 2, 2], True), ([2, 7, 2, 9, 2, 1], True), ([0, 0, 4, 0, 4, 4], False),
        ([0, 0, 4, 4, 4, 0, 0, 4], False),
    ],
)  # fmt: skip
def test_shapes_without_area(polygon, is_empty):
    assert has_no_area(polygon) == is_empty


@pytest.mark.parametrize("polygon", [[1, 2, 3], ["1", "2"], "12", {"x": 1}, [[1, 2], [3, 4]]])
def test_what_is_no_polygon(polygon):
    with pytest.raises(ValueError, match="expected a polygon x0, y0"):
        has_no_area(polygon)
