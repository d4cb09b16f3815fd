"""A model is refused early only where its task would refuse it; see test_contents.py for what is refused."""

from __future__ import annotations

import sys

import pytest
import timm
import torch

from castvision.models import recipe
from castvision_cli.early.model import check_model

ATTO = "cast_vit_atto_patch4_32"


@pytest.fixture(autouse=True)
def _before_lightning(monkeypatch):
    monkeypatch.delitem(sys.modules, "lightning", raising=False)


def configured(kind="ClassificationTask", **arguments):
    return [{"model": {"class_path": kind, "init_args": {"model_name": ATTO, **arguments}}}]


def test_what_is_refused_and_what_is_not_said_of_others():
    with pytest.raises(ValueError, match="argument 'depht'"):
        check_model([], configured(model_kwargs={"depht": 3}))
    check_model([], configured("my_package.ClassificationTask", model_kwargs={"depht": 3}))
    check_model(["--model.model_kwargs.depth", "1"], configured())


@pytest.mark.parametrize("factor", ["1e-1", 0.1])
def test_numbers_that_yaml_takes_for_text(factor):
    check_model([], configured(model_kwargs={"depth": 1, "drop_path_rate": factor}))
    check_model([], configured("SegmentationTask", loss={"ce": factor}, label_smoothing=factor))


def test_a_model_that_computes_while_it_is_built_is_built_with_values(monkeypatch):
    original, devices = recipe.timm.create_model, []

    def create(name, **arguments):
        devices.append(torch.empty(0).device.type)
        torch.ones(1).item()  # which a tensor without values cannot
        return original(name, **arguments)

    monkeypatch.setattr(recipe.timm, "create_model", create)
    check_model([], configured(model_kwargs={"depth": 1}))
    assert devices == ["meta", "cpu"]


def test_weights_that_fit_are_no_cause_for_warnings(tmp_path, recwarn):
    """The model they are tried on has no values, of which torch warns for each weight."""
    torch.save(timm.create_model(ATTO, num_classes=2).state_dict(), tmp_path / "start.pth")
    check_model([], configured(init_from=str(tmp_path / "start.pth")))
    assert [str(warning.message) for warning in recwarn if "meta" in str(warning.message)] == []
