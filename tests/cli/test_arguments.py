from __future__ import annotations

import argparse

import pytest

from castvision_cli.arguments import above_zero, from_zero, natural, positive, share


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(positive, "1", 1), (natural, "0", 0), (from_zero, "0", 0.0), (above_zero, "1e-3", 1e-3), (share, "1", 1.0)],
)
def test_the_edge_of_each_range_is_taken(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (positive, "0", "a whole number >= 1, got '0'"),
        (positive, "1.5", "a whole number >= 1, got '1.5'"),
        (natural, "-1", "a whole number >= 0, got '-1'"),
        (from_zero, "inf", "a number >= 0, got 'inf'"),
        (from_zero, "nan", "a number >= 0, got 'nan'"),
        (above_zero, "0", "a number > 0, got '0'"),
        (share, "1.01", r"a number in 0\.\.1, got '1.01'"),
        (share, "many", r"a number in 0\.\.1, got 'many'"),
    ],
)
def test_what_is_beyond_is_refused(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)
