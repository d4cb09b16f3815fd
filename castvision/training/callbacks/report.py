"""At the end of a run, beside its checkpoints: ``metrics.json`` and ``report.png``."""

from __future__ import annotations

import csv
import json
import logging
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch import Callback

import castvision
from castvision.data.datasets.batch import Batch
from castvision.files import draft
from castvision.models import checkpoint_file
from castvision.models.evaluating import evaluating
from castvision.run_folder import BEST, METRICS, REPORT, log_parts
from castvision.visualization.run_report import Examples, save_report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning.pytorch import LightningModule, Trainer
    from torch import Tensor

    from castvision.training.tasks.task import Task

logger = logging.getLogger(__name__)

NUM_EXAMPLES = 12


class Report(Callback):
    """Measure the run and write its results.

    Args:
        folder: The run's.

    Attributes:
        validated_step: At which step the held-out images were counted last.
        is_finishing: Whether a validation after training belongs to it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.validated_step = -1
        self.is_finishing = False
        self.images = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._started = 0.0
        self._started_cpu = 0.0
        self._validating = (0.0, 0.0)
        self._last: dict[str, float] = {}
        self._best: dict[str, float] = {}
        self._best_confusion: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know."""
        return {
            "images": self.images,
            "seconds": self._elapsed(),
            "cpu_seconds": self._elapsed_cpu(),
            "best": self._best,
            "best_confusion": self._best_confusion,
            "validated_step": self.validated_step,
            "last": self._last,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.images, self.seconds = state_dict["images"], state_dict["seconds"]
        self.cpu_seconds = state_dict.get("cpu_seconds", 0.0)
        self._best, self._best_confusion = state_dict["best"], state_dict["best_confusion"]
        self.validated_step, self._last = state_dict.get("validated_step", -1), state_dict.get("last", {})

    @property
    def best_step(self) -> int:
        """The step of the best round so far; -1 before the first."""
        return int(self._best.get("step", -1))

    def _elapsed(self) -> float:
        return self.seconds + (time.perf_counter() - self._started if self._started else 0.0)

    def _elapsed_cpu(self) -> float:
        return self.cpu_seconds + (time.process_time() - self._started_cpu if self._started else 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._started, self._started_cpu = time.perf_counter(), time.process_time()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Held-out images are not training time."""
        self._validating = time.perf_counter(), time.process_time()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the metrics of the best round."""
        if self._started:
            self._started += time.perf_counter() - self._validating[0]
            self._started_cpu += time.process_time() - self._validating[1]
        if trainer.sanity_checking or not (trainer.state.fn == "fit" or self.is_finishing):
            return
        self.validated_step = trainer.global_step
        task: Task = pl_module  # type: ignore[assignment]
        metrics = _metrics(trainer, "val/")
        self._last = {**metrics, **_metrics(trainer, "clusters/")}
        if metrics.get(task.monitor, float("-inf")) > self._best.get(task.monitor, float("-inf")):
            self._best = {**metrics, "step": trainer.global_step}
            self._best_confusion = task.last_confusion

    def on_train_batch_end(  # Lightning's hook
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images, of all processes: each has as many."""
        self.images += len(batch[0]) * trainer.world_size

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clocks."""
        self.cpu_seconds = self._elapsed_cpu()
        self.seconds, self._started = self._elapsed(), 0.0

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the test metrics."""
        if trainer.is_global_zero and self.folder.is_dir():
            metrics = _metrics(trainer, "test/")
            task: Task = pl_module  # type: ignore[assignment]
            _write_json(self.folder / f"test_{METRICS}", {"figures": metrics, **_counts(task, task.last_confusion)})

    def write(self, trainer: Trainer, task: Task) -> None:
        """Write both files, ``metrics.json`` last: its presence says that the run is finished.

        Args:
            trainer: After training.
            task: The trained task.
        """
        name = task.recipe.model_name
        title = f"{self.folder.name}: {name}, {self.images:,} images in {self.seconds:,.0f} s"
        picture, curves, examples = self.folder / REPORT, read_curves(self.folder), self._examples(trainer, task)
        save_report(picture, title, curves, self._best_confusion, task.class_names, examples)
        _write_json(self.folder / METRICS, self._results(trainer, task))
        logger.info("wrote %s and %s", picture, self.folder / METRICS)

    def _results(self, trainer: Trainer, task: Task) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in task.model.parameters())
        return {
            "best": self._best,
            **{name: _below(prefix, self._last) for name, prefix in (("last", "val/"), ("clusters", "clusters/"))},
            **_counts(task, self._best_confusion),
            "class_names": task.class_names,
            "training": {
                "steps": trainer.global_step,
                "images": self.images,
                "seconds": round(self.seconds, 2),
                "cpu_seconds": round(self.cpu_seconds, 2),
                "images_per_second": round(self.images / max(self.seconds, 1e-9), 1),
            },
            "model": {"name": task.recipe.model_name, "kwargs": task.recipe.model_kwargs, "parameters": parameters},
            "started_from": None if task.init_report is None else str(task.init_report),
            "hardware": _hardware(trainer),
            "versions": {
                "castvision": castvision.__version__,
                "torch": torch.__version__,
                "lightning": lightning.__version__,
                "python": platform.python_version(),
            },
        }

    def _examples(self, trainer: Trainer, task: Task) -> Examples | None:
        """Held-out images with the best checkpoint's predictions; None where there are none to show."""
        data: Any = getattr(trainer, "datamodule", None)
        if data is None or not task.num_classes:
            return None
        dataset = data.dataset("val")
        batch = Batch(*data.collate([dataset[index] for index in range(min(NUM_EXAMPLES, len(dataset)))]))
        if batch.image.ndim != 4:
            return None  # bags of embeddings, of which there is nothing to see
        best = self.folder / BEST
        kept = {name: value.clone() for name, value in task.state_dict().items()}
        try:
            if best.is_file():
                task.load_state_dict(checkpoint_file.read(best)["state_dict"])
            with evaluating(task), torch.inference_mode():
                inputs = trainer.precision_plugin.convert_input(move_data_to_device(batch, task.device))
                predicted = task.predict_step(inputs, 0).cpu()
        finally:
            task.load_state_dict(kept)
        return Examples(batch.image, batch.target, predicted, data.mean, data.std, batch.extras.get("pixel_mask"))


def _counts(task: Task, confusion: Tensor | None) -> dict[str, Any]:
    """What is read off a confusion matrix, for tasks that have one."""
    if confusion is None:
        return {"per_class": [], "confusion": None}
    return {"per_class": task.table(confusion), "confusion": confusion.tolist()}


def _metrics(trainer: Trainer, prefix: str) -> dict[str, float]:
    return {name: float(value) for name, value in _below(prefix, trainer.callback_metrics).items()}


def _below(prefix: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name.startswith(prefix)}


def _hardware(trainer: Trainer) -> str:
    """One line: the device and how many threads."""
    if trainer.strategy.root_device.type == "cuda":
        return f"{trainer.num_devices} × {torch.cuda.get_device_name(trainer.strategy.root_device)}"
    processes = f"{trainer.world_size} processes on " if trainer.world_size > 1 else ""
    return f"{processes}{platform.processor() or platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All metrics in a run's CSV logs, those of resumed parts one after the other.

    Args:
        folder: The run's.

    Returns:
        (step, value) pairs by name.
    """
    curves: dict[str, list[tuple[int, float]]] = {}
    for part in log_parts(folder):
        with part.open(newline="") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in {"step", "epoch"}:
                        curves.setdefault(name, []).append((int(row["step"]), float(value)))
    return curves


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with draft(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
