from __future__ import annotations

import numpy as np
import pytest
import torch

from castvision.data import open_array
from castvision.inference.evaluation import Tally, compare
from castvision.inference.truth import check_labels


def test_bands_add_up(monkeypatch):
    rng = np.random.default_rng(1)
    truth, labels = rng.integers(0, 3, (2, 50, 20)).astype(np.uint8)
    labels[4] = 255
    truth[7] = 255
    whole, parts = Tally(torch.zeros(3, 3, dtype=torch.int64), None), Tally(torch.zeros(3, 3, dtype=torch.int64), None)
    expected = compare(labels, open_array(truth), whole)
    monkeypatch.setattr("castvision.inference.truth._BAND_PIXELS", 60)
    assert torch.equal(compare(labels, open_array(truth), parts), expected)
    assert int(expected.sum()) == 48 * 20
    with pytest.raises(ValueError, match=r"labels 0\.\.1 and 255.*found \[2\]"):
        check_labels(open_array(truth), 2)
