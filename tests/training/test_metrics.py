from __future__ import annotations

import pytest
import torch

from castvision.training.metrics import classification_metrics, metric_key, segmentation_metrics


def test_accuracy_by_hand():
    confusion = torch.tensor([[8, 2], [1, 1]])
    figures = classification_metrics(confusion, ["not connected", "connected"])
    assert figures == pytest.approx({"acc1": 75.0, "mean_acc": 65.0, "acc_not_connected": 80.0, "acc_connected": 50.0})


def test_iou_by_hand():
    confusion = torch.tensor([[90, 2], [3, 5]])
    figures = segmentation_metrics(confusion, ["background", "joining path"])
    assert figures["iou_background"] == pytest.approx(90 / 95)
    assert figures["iou_joining_path"] == pytest.approx(5 / 10)
    assert figures["miou"] == pytest.approx((90 / 95 + 0.5) / 2)
    assert figures["pixel_acc"] == pytest.approx(95.0)


def test_a_class_that_never_occurs_does_not_count():
    confusion = torch.tensor([[4, 0, 0], [0, 4, 0], [0, 0, 0]])
    figures = segmentation_metrics(confusion, ["a", "b", "c"])
    assert figures["miou"] == 1.0
    assert "iou_c" not in figures
    assert classification_metrics(confusion, ["a", "b", "c"])["mean_acc"] == 100.0


def test_iou_is_of_the_data_set_not_a_mean_over_images():
    first, second = torch.tensor([[0, 0], [0, 9]]), torch.tensor([[0, 1], [0, 0]])
    assert segmentation_metrics(first + second, ["a", "b"])["iou_b"] == pytest.approx(0.9)


def test_names():
    assert metric_key("Joining path (2)") == "joining_path_2"
