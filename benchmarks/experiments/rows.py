"""Rows: what a run found, one JSON file each, written whole or not at all; a finished one is never written again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.record import describe_machine
from castvision.files import draft

if TYPE_CHECKING:
    from benchmarks.experiments.definition import Experiment, Run

FORMAT = 1


class Rows:
    """The rows of a results folder.

    Args:
        folder: Holds ``rows/EXPERIMENT/RUN.json``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "rows"

    def path(self, run: Run) -> Path:
        """Where a run's row is."""
        return self.folder / f"{run.key}.json"

    def find(self, run: Run) -> dict[str, Any] | None:
        """A run's row as the experiment is defined now, finished or not; None where there is none.

        Raises:
            ValueError: A file that is no row.
        """
        path = self.path(run)
        if not path.is_file():
            return None
        try:
            row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            is_row = row["format"] == FORMAT
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"expected a row in {path}, got {error!r}; move it away") from None
        if not is_row:
            raise ValueError(f"expected a row of format {FORMAT} in {path}; move it away")
        if not run.is_same(row["config"]):
            return None
        if run.budget == "images" and row["config"]["trainer"]["max_steps"] != steps_at_equal_images(run.experiment):
            return None
        return None if run.budget == "seconds" and row["budget_seconds"] != run.experiment.seconds else row

    def finished(self, run: Run) -> dict[str, Any] | None:
        """A run's row if it is finished."""
        row = self.find(run)
        return row if row is not None and row["finished"] else None

    def is_outdated(self, run: Run) -> bool:
        """Whether there is a row of another definition, which a new run replaces."""
        return self.path(run).is_file() and self.find(run) is None

    def write(self, run: Run, row: dict[str, Any]) -> None:
        """Keep a row.

        Raises:
            FileExistsError: The run has a finished one.
        """
        if self.finished(run) is not None:
            raise FileExistsError(f"{self.path(run)} is finished")
        with draft(self.path(run), is_durable=True) as temporary:
            temporary.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")

    def steps(self, run: Run) -> int | None:
        """Steps that a run takes; None while nothing says how many fit into its time.

        At equal time they follow from the processor's time for each image that the same setting took at equal images:
        a number that is fixed before the run, so that it stops, goes on and repeats exactly, whatever else the machine
        does.
        """
        experiment = run.experiment
        if run.budget == "images":
            return steps_at_equal_images(experiment)
        rates = [images_per_second(row) for row in self._at_equal_images(run)]
        if not rates or experiment.seconds is None:
            return None
        return max(1, round(experiment.seconds * sorted(rates)[len(rates) // 2] / experiment.batch_size))

    def _at_equal_images(self, run: Run) -> list[dict[str, Any]]:
        runs = (other for other in run.experiment.runs() if (other.setting, other.budget) == (run.setting, "images"))
        return [row for row in map(self.finished, runs) if row is not None]


def steps_at_equal_images(experiment: Experiment) -> int:
    """Whole batches."""
    return experiment.images // experiment.batch_size


def images_per_second(row: dict[str, Any]) -> float:
    """Training images per second: of the processor, or on a GPU of the clock."""
    seconds: float = row["seconds"] if "gpu" in row["machine"] else row["cpu_seconds"]
    return float(row["images"]) / max(seconds, 1e-9)


def make_row(run: Run, config: dict[str, Any], folder: Path, commits: list[str]) -> dict[str, Any]:
    """The row of a run's folder, trained and tested.

    Args:
        run: Which one.
        config: It was trained with.
        folder: Of ``castvision train``, with ``metrics.json`` and ``test_metrics.json``.
        commits: Of the checkout while it ran.

    Raises:
        ValueError: The test images have no such metric.
    """
    results = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    test = json.loads((folder / "test_metrics.json").read_text(encoding="utf-8"))["figures"]
    if f"test/{run.experiment.metric}" not in test:
        known = ", ".join(name.removeprefix("test/") for name in test)
        raise ValueError(f"expected the metric of {run.experiment.name} among {known}; got {run.experiment.metric}")
    training = results["training"]
    return {
        **_head(run, config, commits),
        "finished": True,
        "metrics": {name.removeprefix("test/"): value for name, value in test.items()},
        "best_step": results["best"].get("step"),
        "clusters": results["clusters"],
        "curve": read_curve(run, folder),
        **{name: training[name] for name in ("steps", "images", "seconds", "cpu_seconds")},
        "parameters": results["model"]["parameters"],
        "hardware": results["hardware"],
        "machine": describe_machine(),
        "versions": results["versions"],
    }


def make_unfinished_row(run: Run, config: dict[str, Any], folder: Path, commits: list[str]) -> dict[str, Any] | None:
    """How far a run came whose budget was spent: its curve, images and time; None before the first checkpoint."""
    from castvision.models import checkpoint_file

    last = folder / "last.ckpt"
    if not last.is_file():
        return None
    checkpoint = checkpoint_file.read(last)
    state = next(state for name, state in checkpoint["callbacks"].items() if name.startswith("Report"))
    return {
        **_head(run, config, commits),
        "finished": False,
        "curve": read_curve(run, folder),
        "steps": checkpoint["global_step"],
        **{name: round(state[name], 2) for name in ("images", "seconds", "cpu_seconds")},
        "machine": describe_machine(),
    }


def _head(run: Run, config: dict[str, Any], commits: list[str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "experiment": run.experiment.name,
        "setting": run.setting,
        "seed": run.seed,
        "budget": run.budget,
        "budget_seconds": run.experiment.seconds if run.budget == "seconds" else None,
        "config": config,
        "commits": commits,
    }


def read_curve(run: Run, folder: Path) -> list[list[float]]:
    """[training images, the experiment's metric on the images that choose the checkpoint] of each round."""
    from castvision.training.callbacks.report import read_curves

    points = read_curves(folder).get(f"val/{run.experiment.metric}", [])
    return [[(step + 1) * run.experiment.batch_size, round(value, 5)] for step, value in points]
