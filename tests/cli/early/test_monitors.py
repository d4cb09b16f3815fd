"""A metric that no task gives is refused before there is a task."""

from __future__ import annotations

import re
import sys

import pytest

import castvision.training
from castvision_cli.early.classes import check_classes
from castvision_cli.early.monitors import check_monitor

TASKS = [name for name in castvision.training.__all__ if name.endswith("Task") and name != "Task"]


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_chooses_by_is_known(task):
    monitor = getattr(castvision.training, task).monitor
    for name in (monitor, "val/loss", monitor.replace("val/", "val/newest_")):
        check_monitor(task, "ModelCheckpoint", {"monitor": name})
    with pytest.raises(ValueError, match=re.escape("no metric 'val/nothing' for EarlyStopping.monitor: expected one")):
        check_monitor(task, "lightning.pytorch.callbacks.EarlyStopping", {"monitor": "val/nothing"})


@pytest.mark.parametrize(
    ("task", "metric", "near"),
    [
        ("SegmentationTask", "val/mIoU", "val/miou"),
        ("InstanceTask", "val/boundary_f2", "val/boundary_f1"),
        ("ClassificationTask", "val/acc", "val/acc1"),
        ("castvision.training.DistillationTask", "val/explain", "val/explained"),
    ],
)
def test_the_nearest_is_offered(task, metric, near):
    with pytest.raises(ValueError, match=f"did you mean {near}"):
        check_monitor(task, "EarlyStopping", {"monitor": metric})


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        ("SegmentationTask", "val/iou_open water"), ("SegmentationTask", "val/distance_iou_0_to_0.25"),
        ("MultiLabelTask", "val/ap_> 5 mm"), ("DistillationTask", "val/before_cosine"),
        ("my_package.OwnTask", "val/anything"), ("", "val/anything"), ("SegmentationTask", "train/loss"),
        ("SegmentationTask", None),
    ],
)  # fmt: skip
def test_what_may_be_there_is_let_through(task, metric):
    check_monitor(task, "EarlyStopping", {"monitor": metric})


@pytest.mark.parametrize(
    ("words", "named", "more", "is_refused"),
    [
        ("", "SegmentationTask", [], True),
        ("--model ClassificationTask", "SegmentationTask", [], False),
        ("--model=SegmentationTask", None, [], True),
        ("", "SegmentationTask", ["my_package"], False),  # its callbacks may give more
    ],
)
def test_the_task_is_the_one_named_last(words, named, more, is_refused):
    contents = [{"model": {"class_path": named}}, {"trainer": {}}]
    flags = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/acc1".split()
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "lightning")
        if not is_refused:
            check_classes([*words.split(), *flags], contents, more)
            return
        with pytest.raises(ValueError, match="no metric 'val/acc1'"):
            check_classes([*words.split(), *flags], contents, more)
