"""Metrics that callbacks are to watch: whether a task of ours gives them, before there is a task.

`castvision.training.callbacks.monitors.KnownMonitors` says the same of every task, when held-out images were tried.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLASSIFIED = ("acc1", "mean_acc", "macro_f1", "acc_")
_SEGMENTED = ("miou", "macro_f1", "pixel_acc", "iou_", "boundary_f1", "boundary_f1_", "distance_iou_")
_METRICS = {
    "ClassificationTask": _CLASSIFIED,
    "DistillationTask": ("explained", "unexplained", "cosine", "class_cosine", "before_"),
    "InstanceTask": _SEGMENTED,
    "MultiLabelTask": ("map", "f1", "ap_", "f1_"),
    "SegmentationTask": _SEGMENTED,
    "SlideTask": _CLASSIFIED,
}
"""Of held-out images, beside ``loss``; after the line below stands a class's name, or what was measured before."""
_PREFIX = "val/"
_NEWEST = "newest_"
"""The newest weights, where their average is what is tried (``ema``)."""


def check_monitor(task: str, name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse a ``monitor`` among the metrics of held-out images that a task does not give.

    Args:
        task: Its class; of one that is none of ours, nothing is known.
        name: The callback's class.
        arguments: What the callback is to be made with.

    Raises:
        ValueError: It names a similar one, or all.
    """
    monitor, known = arguments.get("monitor"), _METRICS.get(task.rpartition(".")[2])
    if known is None or not isinstance(monitor, str) or not monitor.startswith(_PREFIX):
        return
    metric = monitor.removeprefix(_PREFIX).removeprefix(_NEWEST)
    whole = ["loss", *(each for each in known if not each.endswith("_"))]
    if metric in whole or metric.startswith(tuple(each for each in known if each.endswith("_"))):
        return
    near = difflib.get_close_matches(metric.lower(), whole, n=1)
    hint = f"did you mean {_PREFIX}{near[0]}?" if near else f"expected one of {', '.join(_PREFIX + x for x in whole)}"
    raise ValueError(f"no metric {monitor!r} for {name.rpartition('.')[2]}.monitor: {hint}")
