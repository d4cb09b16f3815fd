#!/usr/bin/env python
"""Compare models of the dense tasks with their controls on held-out images: metrics as JSON, examples as a picture.

Takes a folder of finished runs, each named after its configuration: maze64, maze64_cnn, region64, …
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works without an installation

TASKS = ("maze64", "region64", "pathfinder_seg32")
CONTROLS = {"": "clustered attention", "_no_attention": "attention removed", "_cnn": "small CNN"}


def load_run(folder: Path) -> tuple[Any, Any]:
    """The trained model and the data set of test images it was configured for."""
    import yaml

    import castvision.training.data.synthetic as modules
    from castvision.inference.predictor import load_model

    content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["data"]
    module = getattr(modules, content["class_path"].rsplit(".", 1)[-1])
    return load_model(folder / "best.ckpt").parts.model.eval(), module(**content["init_args"]).dataset("test")


def evaluate(model: Any, dataset: Any, count: int) -> dict[str, Any]:
    """Metrics of the last class, which is the one that needs the dot, on the first ``count`` test images."""
    import torch
    from torch.utils.data import default_collate

    from castvision.data.datasets.batch import Batch
    from castvision.metrics import DISTANCE_EDGES, DistanceIoU, per_class_metrics

    num_classes = len(dataset.class_names)
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    by_distance = DistanceIoU(DISTANCE_EDGES, foreground=num_classes - 1)
    for first in range(0, count, 50):
        batch = Batch(*default_collate(dataset.__getitems__(range(first, min(count, first + 50)))))
        with torch.inference_mode():
            predicted = model(batch.image).argmax(1)
        pairs = (batch.target * num_classes + predicted).flatten()
        confusion += torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        by_distance.update(predicted, batch.target, batch.truth["distance"])
    by_class = per_class_metrics(confusion)
    return {
        "foreground_iou": round(float(by_class["iou"][-1]), 4),
        "macro_f1": round(float(by_class["f1"].mean()), 4),
        "iou_by_distance": [round(value, 4) if value == value else None for value in by_distance.compute().tolist()],
        "pixels_by_distance": by_distance.counts[1].tolist(),
        "confusion": confusion.tolist(),
    }


def guess(dataset: Any, count: int) -> float:
    """IoU of marking every pixel that is not black: what knowing nothing about the dot is worth."""
    import numpy as np

    batch = dataset.make_batch(np.arange(count))
    return round(float((batch.targets == len(dataset.class_names) - 1).sum() / (batch.images > 0).sum()), 4)


def draw(path: Path, report: dict[str, Any], runs: dict[str, dict[str, tuple[Any, Any]]], examples: list[int]) -> None:
    """For each task: two images with truth and answers, and the IoU by distance."""
    import torch

    from benchmarks.report import new_plot, write_plot
    from castvision.metrics import DISTANCE_EDGES

    columns = 2 + max(len(models) for models in runs.values())
    figure = new_plot(2 * columns + 4.5, 4 * len(runs))
    grid = figure.add_gridspec(2 * len(runs), columns + 2)
    for number, (task, models) in enumerate(runs.items()):
        for row, index in enumerate(examples):
            image, target, *_ = next(iter(models.values()))[1][index]
            pictures = {"image": image[0], "truth": target}
            with torch.inference_mode():
                pictures |= {name: model(image[None]).argmax(1)[0] for name, (model, _) in models.items()}
            for column, (name, picture) in enumerate(pictures.items()):
                axes = figure.add_subplot(grid[2 * number + row, column])
                axes.imshow(picture.numpy(), cmap="gray" if name == "image" else "viridis", interpolation="nearest")
                axes.set_axis_off()
                axes.set_title(f"{task}: {name}" if column == 0 else name, fontsize=9)
        axes = figure.add_subplot(grid[2 * number : 2 * number + 2, columns:])
        for name in models:
            metrics = report["tasks"][task][name]
            known = [(edge, value) for edge, value in zip(DISTANCE_EDGES, metrics["iou_by_distance"], strict=False)
                     if value is not None]  # fmt: skip
            axes.plot(*zip(*known, strict=True), marker=".", label=f"{name}, {metrics['foreground_iou']:.2f} over all")
        axes.set(xlabel="way from the dot, image widths (from)", ylabel="IoU", ylim=(0, 1), title=task)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    write_plot(path, figure, dpi=80)


def describe(folder: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """A run's model and budget beside its metrics."""
    run = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {**{key: run[key] for key in ("model", "training", "hardware")}, **metrics}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of runs, as `castvision train --config maze64` makes in runs/")
    parser.add_argument("--json", type=Path, required=True, help="where the metrics go")
    parser.add_argument("--png", type=Path, required=True, help="where the picture goes")
    parser.add_argument("--count", type=int, default=1000, help="test images (default: 1000)")
    parser.add_argument(
        "--examples", type=int, nargs=2, default=[0, 1], help="test images that are drawn (default: 0 1)"
    )
    arguments = parser.parse_args()
    runs: dict[str, dict[str, tuple[Any, Any]]] = {}
    from castvision.files import draft
    from castvision.metrics import DISTANCE_EDGES

    report: dict[str, Any] = {"images": arguments.count, "edges_in_image_widths": DISTANCE_EDGES, "tasks": {}}
    for task in TASKS:
        folders = {name: arguments.runs / f"{task}{end}" for end, name in CONTROLS.items()}
        found = {name: folder for name, folder in folders.items() if (folder / "metrics.json").is_file()}
        if not found:
            continue
        runs[task] = {name: load_run(folder) for name, folder in found.items()}
        report["tasks"][task] = {
            name: describe(folder, evaluate(*runs[task][name], arguments.count)) for name, folder in found.items()
        }
        report["tasks"][task]["iou_of_marking_all"] = guess(next(iter(runs[task].values()))[1], arguments.count)
    if not runs:
        print(f"dense_report.py: no finished run of {', '.join(TASKS)} in {arguments.runs}", file=sys.stderr)
        return 1
    with draft(arguments.json) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(arguments.png, report, runs, arguments.examples)
    return 0


if __name__ == "__main__":
    sys.exit(main())
