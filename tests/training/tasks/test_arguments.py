"""What Python takes without a word, and a task would stumble over later, is refused when the task is made."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import AdamW

from castvision.training import ClassificationTask, DistillationTask, MultiLabelTask, SegmentationTask, SlideTask
from castvision.training.optim import Schedule

MODEL = {"model_name": "cast_vit_atto_patch4_32", "num_classes": 2, "model_kwargs": {"depth": 1}}


@pytest.mark.parametrize("task", [ClassificationTask, MultiLabelTask, SegmentationTask])
@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"schedule": {"warmup": 0.1}}, r"schedule to be a .*Schedule\(warmup=0.1\), got schedule=\{'warmup': 0.1\}"),
        ({"optimizer": "adamw"}, r"optimizer to be a class or a function .* got optimizer=adamw"),
        ({"optimizer": AdamW([torch.nn.Parameter(torch.zeros(1))])}, r"optimizer to be a class .* optimizer=AdamW$"),
        ({"weight_decay": "0.05"}, "weight_decay to be a number, got weight_decay='0.05'"),
        ({"layer_decay": True}, "layer_decay to be a number, got layer_decay=True"),
        ({"freeze": "backbone"}, "freeze to be a list of patterns, got freeze='backbone'"),
        ({"num_classes": "2"}, "num_classes to be a whole number, got num_classes='2'"),
        ({"num_classes": 2.0}, "num_classes to be a whole number, got num_classes=2.0"),
        ({"model_kwargs": [("depth", 1)]}, "model_kwargs to be a dictionary"),
        ({"model_name": torch.nn.Identity()}, r"model_name to be the name of a timm model, got model_name=Identity"),
    ],
)
def test_kinds_of_every_task(task, arguments, wanted):
    with pytest.raises(TypeError, match=wanted):
        task(**{**MODEL, **arguments})


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"loss": "dice"}, r"loss to be a dictionary such as .* got loss='dice'"),
        ({"loss": ["ce", "dice"]}, "loss to be a dictionary"),
        ({"head": torch.nn.Identity()}, "head to be the name of a class"),
        ({"head_kwargs": [1]}, "head_kwargs to be a dictionary"),
        ({"out_indices": 0}, "out_indices to be a list of numbers, got out_indices=0"),
        ({"context_size": 32}, r"context_size to be \(height, width\), got context_size=32"),
        ({"context_size": "32"}, "context_size to be"),
        ({"context_size": (32, 32, 3)}, r"context_size to be \(height, width\), got context_size=\(32, 32, 3\)"),
    ],
)
def test_kinds_of_segmentation(arguments, wanted):
    with pytest.raises((TypeError, ValueError), match=wanted):
        SegmentationTask(**{**MODEL, **arguments})


def test_tasks_without_classes_of_their_own_judge_alike():
    with pytest.raises(TypeError, match="schedule to be"):
        SlideTask(model_kwargs={"in_chans": 4}, schedule={})
    with pytest.raises(TypeError, match="optimizer to be"):
        DistillationTask("vit_tiny_patch16_224", model_kwargs={"depth": 1}, optimizer="sgd")


def test_what_is_right_passes():
    task = SegmentationTask(
        **{**MODEL, "num_classes": np.int64(2)}, optimizer=partial(AdamW, lr=1e-3), schedule=Schedule(warmup=0),
        weight_decay=0, freeze=["backbone.blocks.0.*"], loss={"ce": 1, "dice": 1}, out_indices=(0,),
    )  # fmt: skip
    assert task.num_classes == 2
    assert type(task.num_classes) is int  # as a checkpoint keeps it
