"""Evaluation mode for a while."""

from __future__ import annotations

import pytest
from torch import nn

from castvision.models.evaluating import evaluating


def test_every_module_is_in_its_own_mode_again() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)))
    model[1][1].eval()  # frozen, in a model that trains
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert [module.training for module in model.modules()] == modes
