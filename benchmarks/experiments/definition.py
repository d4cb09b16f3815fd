"""What is to be run: an experiment is a configuration of ``castvision train``, crossed with settings and seeds.

``results/settings.yaml`` maps a setting's name to arguments of the task, such as ``{attention: paper}``; an experiment
is a file of ``results/experiments``.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from castvision_cli.train import find_config

BUDGETS = ("images", "seconds")
"""What is equal among the settings: training images, or the processor's time while training."""
ROUNDS = 8
"""Rounds of held-out images in a run, and so checkpoints and points of its curve."""


@dataclass(frozen=True)
class Experiment:
    """A task, and which runs of it there should be.

    Attributes:
        name: The file's, without ``.yaml``.
        title: One line for headings.
        metric: Of the test images, as ``test_metrics.json`` names it, without ``test/``.
        images: Training images of each run at equal images.
        config: As ``castvision train`` takes it, without what the settings and the tool add.
        settings: Names of settings, in the order of the table.
        seeds: Each is the start of the weights and of the data.
        seconds: Of the processor, for each run at equal time; None = no such runs.
        subject: The setting that is compared with all others.
        about: What a reader must know: a paragraph.
        rounds: Of held-out images in a run.
        needs: Paths, relative to the folder the tool is called in, without which it cannot run: data that are not made.
    """

    name: str
    title: str
    metric: str
    images: int
    config: dict[str, Any]
    settings: dict[str, dict[str, Any]]
    seeds: tuple[int, ...] = (0, 1, 2)
    seconds: float | None = None
    subject: str = "near_far"
    about: str = ""
    rounds: int = ROUNDS
    needs: tuple[str, ...] = ()

    @property
    def batch_size(self) -> int:
        """Images a step."""
        return int(self.config["data"]["init_args"]["batch_size"])

    def runs(self) -> list[Run]:
        """Seed by seed; those at equal time after those at equal images, which they need."""
        budgets = BUDGETS if self.seconds is not None else BUDGETS[:1]
        return [
            Run(self, setting, seed, budget) for seed in self.seeds for budget in budgets for setting in self.settings
        ]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        experiment: Its task.
        setting: Name of a setting.
        seed: Of weights and data.
        budget: One of `BUDGETS`.
    """

    experiment: Experiment = field(repr=False)
    setting: str
    seed: int
    budget: str

    @property
    def key(self) -> str:
        """Unique among all runs, and a relative path: ``join/near_far-images-0``."""
        plain = "_".join(self.setting.replace(",", " ").split())
        return f"{self.experiment.name}/{plain}-{self.budget}-{self.seed}"

    def config(self, steps: int) -> dict[str, Any]:
        """The whole configuration of ``castvision train``."""
        experiment = self.experiment
        whole = merge(experiment.config, {"model": {"init_args": experiment.settings[self.setting]}})
        # held-out images follow the data's seed, too: an interval over seeds holds the chance of all three
        added = {
            "seed_everything": self.seed,
            "data": {"init_args": {"seed": self.seed}},
            "trainer": {
                "max_epochs": -1,
                "max_steps": steps,
                "val_check_interval": max(1, steps // experiment.rounds),
                "check_val_every_n_epoch": None,
                "enable_progress_bar": False,
            },
        }
        return merge(whole, added)

    def is_same(self, config: dict[str, Any]) -> bool:
        """Whether a configuration is this run's, whatever its number of steps."""
        trainer = config.get("trainer", {})
        return isinstance(trainer, dict) and config == self.config(int(trainer.get("max_steps", 0)))


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings with changes; what is no mapping is replaced whole."""
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def load_experiments(folder: Path, names: list[str] | None = None) -> list[Experiment]:
    """All experiments of a results folder, or those with certain names, by name.

    Args:
        folder: With ``settings.yaml`` and ``experiments/*.yaml``.
        names: None or empty = all.

    Raises:
        FileNotFoundError: No settings or no experiment there.
        ValueError: An unknown name, or a file that is no experiment; says which and why.
    """
    files = {path.stem: path for path in sorted((folder / "experiments").glob("*.yaml"))}
    if not files:
        raise FileNotFoundError(f"expected experiments/*.yaml in {str(folder)!r}, found none")
    unknown = sorted(set(names or ()) - set(files))
    if unknown:
        raise ValueError(f"expected experiments among {', '.join(files)}, got {', '.join(unknown)}")
    settings = _read_mapping(folder / "settings.yaml")
    return [_read_experiment(files[name], settings) for name in files if not names or name in names]


def _read_experiment(path: Path, settings: dict[str, Any]) -> Experiment:
    content = _read_mapping(path)
    known = {each.name for each in fields(Experiment)} - {"name"} | {"base"}
    wrong = sorted(set(content) - known)
    missing = sorted({"title", "metric", "images", "config"} - set(content))
    if wrong or missing:
        raise ValueError(f"{path}: expected the keys {', '.join(sorted(known))}; unknown {wrong}, missing {missing}")
    base = _read_mapping(find_config(content.pop("base"))) if "base" in content else {}
    content["config"] = json.loads(json.dumps(merge(base, content["config"])))  # as rows will hold it
    chosen = content.pop("settings", list(settings))
    absent = sorted(set(chosen) - set(settings))
    subject = content.get("subject", Experiment.subject)
    if absent or subject not in chosen:
        raise ValueError(f"{path}: expected settings among {', '.join(settings)}, got {absent or [subject]}")
    for name in ("seeds", "needs"):
        if name in content:
            content[name] = tuple(content[name])
    experiment = Experiment(path.stem, settings={name: settings[name] or {} for name in chosen}, **content)
    _check(experiment, path)
    return experiment


def _check(experiment: Experiment, path: Path) -> None:
    """Refuse what would fail, or mean nothing, only when it runs.

    Raises:
        ValueError: Naming the file.
    """
    data = experiment.config.get("data", {}).get("init_args", {})
    if not isinstance(data.get("batch_size"), int) or "model" not in experiment.config:
        raise ValueError(f"{path}: expected a config with a model and data.init_args.batch_size")
    seeds = experiment.seeds
    if experiment.images < experiment.batch_size or not seeds or len(set(seeds)) < len(seeds) or experiment.rounds < 1:
        raise ValueError(f"{path}: expected images >= batch_size, rounds >= 1 and different seeds, one at least")
    if experiment.seconds is not None and experiment.seconds <= 0:
        raise ValueError(f"{path}: expected seconds > 0, got {experiment.seconds}")


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a mapping, got {type(content).__name__}")
    return content
