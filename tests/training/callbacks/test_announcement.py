"""A run says what it is going to do, with the numbers that come true."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from castvision.data.datasets.samples import PixelDataset
from castvision.training.callbacks import announcement
from castvision.training.callbacks.announcement import Announcement, classes_told, images_per_class, steps_told


class Masks(PixelDataset):
    """Of 40 images every second one shows class 1, the first four class 2."""

    def __len__(self):
        return 40

    def name(self, index):
        return str(index)

    def read(self, index):
        mask = np.zeros((4, 4), np.uint8)
        mask[0, 0] = 255
        mask[1, 1] = index % 2
        mask[2, 2] = 2 * (index < 4)
        return np.zeros((4, 4, 1), np.uint8), mask


def trainer(**change):
    facts = {
        "max_epochs": 3, "max_steps": -1, "accumulate_grad_batches": 1, "world_size": 1, "limit_train_batches": None,
        "is_global_zero": True, "strategy": SimpleNamespace(root_device=torch.device("cpu")), "callbacks": [],
        "estimated_stepping_batches": 12, "global_step": 2,
    }  # fmt: skip
    return SimpleNamespace(**{**facts, **change})


def test_images_of_each_class_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert images_per_class(SimpleNamespace(targets=[0, 1, 1, 2, 1]), 4) == ([1, 3, 1, 0], 5, 5)
    table = SimpleNamespace(targets=np.array([[1.0, 0.0], [1.0, 1.0]]))
    assert images_per_class(SimpleNamespace(table=table), 2) == ([2, 1], 2, 2)
    assert images_per_class(object(), 2) is None
    state = torch.random.get_rng_state()
    monkeypatch.setattr(announcement, "LOOKED_AT", 40)
    assert images_per_class(Masks(), 3) == ([40, 20, 4], 40, 40)
    assert classes_told(Masks(), ["ground", "path", "dot"]) == "; images with ground 40, path 20, dot 4"
    monkeypatch.setattr(announcement, "LOOKED_AT", 10)
    assert classes_told(Masks(), ["ground", "path", "dot"]).startswith("; images of 10 looked at with ground 10, ")
    monkeypatch.setattr(announcement, "LOOK_SECONDS", -1.0)
    assert images_per_class(Masks(), 3) == ([1, 0, 1], 1, 40)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "batches of 8, 5 steps an epoch, 15 steps in all in at most 3 epochs"),
        ({"max_steps": 7}, "batches of 8, 5 steps an epoch, 7 steps in all in at most 3 epochs"),
        ({"accumulate_grad_batches": 2}, "batches of 8, 3 steps an epoch of 2 batches, 9 steps in all"),
        ({"max_epochs": -1}, "batches of 8, 5 steps an epoch, until it is stopped"),
        ({"limit_train_batches": 2}, "batches of 8, 2 steps an epoch, 6 steps in all"),
        (
            {"callbacks": [GradientAccumulationScheduler({1: 2, 2: 5})]},
            "batches of 8, 5 steps an epoch at first, 9 steps in all",
        ),
        ({"limit_train_batches": 0.5, "world_size": 2}, "batches of 8, 2 steps an epoch, 6 steps in all"),
    ],
)
def test_steps_are_those_that_will_be_made(change: dict, told: str) -> None:
    assert steps_told(trainer(**change), SimpleNamespace(batch_size=8, steps_an_epoch=5)).startswith(told)


def test_a_steps_time_is_told_once_without_the_first(caplog: pytest.LogCaptureFixture) -> None:
    told = Announcement("runs/x")
    logging.getLogger("castvision").propagate = True
    with caplog.at_level(logging.INFO, logger="castvision"):
        for _ in range(20):
            told.on_train_batch_end(trainer(), None, None, None, 0)
    (line,) = {record.getMessage() for record in caplog.records if record.name.endswith("announcement")}
    pattern = r"a step takes [\d.e-]+ s \(mean of 5\), 0:00:0\d to go without held-out images, \d+\.\d\d GB of memory"
    assert re.fullmatch(pattern, line)
