"""Values of a configuration that cannot be right, told by an annotation, by a lower limit or by the names there are.

The classes check them, too, for those who call them from Python; here it is said before they are imported.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision_cli.arguments import check_device
from castvision_cli.early.annotations import allows, as_number, told

if TYPE_CHECKING:
    import ast

_RANGES = {
    "BatchSizeFinder.margin": "[0, 1)", "CSVLogger.flush_logs_every_n_steps": "[1, inf)",
    "ModelCheckpoint.every_n_epochs": "[0, inf)", "ModelCheckpoint.every_n_train_steps": "[0, inf)",
    "ModelCheckpoint.save_top_k": "[-1, inf)", "StochasticWeightAveraging.swa_epoch_start": "[0, inf)",
    "StochasticWeightAveraging.swa_lrs": "(0, inf)",
    "data.batch_size": "[1, inf)", "data.img_size": "[1, inf)", "data.in_chans": "[1, inf)",
    "data.num_workers": "[0, inf)", "early_stopping": "[1, inf)", "ema": "(0, 1)", "model.label_smoothing": "[0, 1]",
    "model.layer_decay": "(0, 1]", "model.mask_weight": "[0, inf)", "model.num_classes": "[1, inf)",
    "model.optimizer.lr": "[0, inf)", "model.optimizer.weight_decay": "[0, inf)", "model.schedule.final": "[0, 1]",
    "model.schedule.warmup": "[0, 1)", "model.weight_decay": "[0, inf)", "seed_everything": "[0, 4294967295]",
    "trainer.accumulate_grad_batches": "[1, inf)", "trainer.check_val_every_n_epoch": "[1, inf)",
    "trainer.fast_dev_run": "[0, inf)", "trainer.gradient_clip_val": "[0, inf)",
    "trainer.limit_predict_batches": "[0, inf)", "trainer.limit_test_batches": "[0, inf)",
    "trainer.limit_train_batches": "[0, inf)", "trainer.limit_val_batches": "[0, inf)",
    "trainer.max_epochs": "[-1, inf)", "trainer.max_steps": "[-1, inf)", "trainer.num_nodes": "[1, inf)",
    "trainer.overfit_batches": "[0, inf)", "trainer.reload_dataloaders_every_n_epochs": "[0, inf)",
    "trainer.val_check_interval": "(0, inf)",
}  # fmt: skip
"""Where numbers lie: round brackets leave the end out; null may stand for none."""
_RANGE = re.compile(r"([\[(])(.+), (.+)([\])])")
_PARTS_OR_NUMBERS = (
    "StochasticWeightAveraging.swa_epoch_start",
    "trainer.limit_predict_batches", "trainer.limit_test_batches", "trainer.limit_train_batches",
    "trainer.limit_val_batches", "trainer.overfit_batches", "trainer.val_check_interval",
)  # fmt: skip
"""Whole numbers, or shares up to 1."""
_CHOICES = {
    "trainer.gradient_clip_algorithm": ("norm", "value"),
    "trainer.profiler": ("advanced", "pytorch", "simple", "xla"),
    "BatchSizeFinder.mode": ("binsearch", "power"),
    "EarlyStopping.mode": ("max", "min"),
    "LearningRateFinder.mode": ("exponential", "linear"),
    "MixedPrecision.precision": ("16-mixed", "bf16-mixed"),
    "ModelCheckpoint.mode": ("max", "min"),
    "ModelPruning.pruning_fn": ("l1_unstructured", "ln_structured", "random_structured", "random_unstructured"),
    "StochasticWeightAveraging.annealing_strategy": ("cos", "linear"),
    "Timer.interval": ("epoch", "step"),
}
"""Names that Lightning knows where it takes text; other objects go by import path."""
_ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps", "tpu")
_STRATEGIES = ("auto", "ddp", "deepspeed", "fsdp", "hpu", "model_parallel", "single", "xla")
"""How names of Lightning's strategies begin."""
_DDP = re.compile(r"ddp(_spawn|_fork|_notebook)?(_find_unused_parameters_(true|false))?")
_ON_GPUS = ("deepspeed", "fsdp")
_TIMES = ("trainer.max_time", "Timer.duration")
_TIME = re.compile(r"\d+(:\d+){3}")
_MODEL_FUNCTION = re.compile(r"^def ([a-z]\w*)\(\s*pretrained\b", re.MULTILINE)
_ELSEWHERE = (":", "/")
"""In the names of models that are in folders and on hubs."""


def check_value(key: str, value: Any, annotation: ast.expr | None) -> None:
    """Refuse a value that an argument cannot have; what cannot be told is let through.

    Args:
        key: "model", "data" or "trainer", a dot and the argument's name; or the name of one of the command's own.
        value: As YAML reads it; ``...`` is none.
        annotation: The argument's, from its source; None = not known.

    Raises:
        ValueError: It names the key, what is expected and what came.
    """
    if value is ...:
        return
    if annotation is not None and not allows(annotation, value):
        raise ValueError(f"expected {key} to be {told(annotation)}, got {value!r}")
    if isinstance(value, str):
        _check_text(key, value)
    if key == "trainer.barebones" and value is True:
        raise ValueError("expected trainer.barebones false: a run writes its logs and checkpoints, got True")
    if key == "trainer.devices":
        _check_devices(value)
    if key == "GradientAccumulationScheduler.scheduling" and isinstance(value, dict):
        _check_scheduling(key, value)
    if value is not None and key in _RANGES:
        for each in value if isinstance(value, list) else [value]:
            _check_range(key, each)


def _check_text(key: str, value: str) -> None:
    """Of what Lightning takes as text."""
    if key == "trainer.accelerator":
        _check_accelerator(value)
    if key == "trainer.strategy":
        _check_strategy(value)
    if value.lower() not in (choices := _CHOICES.get(key, (value.lower(),))) and "." not in value:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"expected {key} of {', '.join(choices)}, got {value!r}{hint}")
    if key in _TIMES and not (_TIME.fullmatch(value) and value.strip("0:")):
        raise ValueError(f"expected {key} as DD:HH:MM:SS, above zero, got {value!r}")


def _check_range(key: str, value: Any) -> None:
    opening, low, high, closing = _RANGE.findall(_RANGES[key])[0]
    number = as_number(value) if isinstance(value, int | float | str) else None
    above, below = (">" if opening == "(" else ">="), ("<" if closing == ")" else "<=")
    holds = number is not None and (number > float(low) or (opening == "[" and number == float(low)))
    holds = holds and number is not None and (number < float(high) or (closing == "]" and number == float(high)))
    if not holds:
        open_end = f"{'a finite ' if number == math.inf else ''}{key} {above} {low}"
        limit = open_end if high == "inf" else f"{low} {above.replace('>', '<')} {key} {below} {high}"
        raise ValueError(f"expected {limit}, got {value!r}")
    if key in _PARTS_OR_NUMBERS and isinstance(value, float) and value > 1:
        raise ValueError(f"expected {key} as a share up to 1, or a whole number, got {value!r}")


def _check_devices(value: Any) -> None:
    """Of the trainer: "auto", how many (-1: all), or which."""
    number = as_number(value) if isinstance(value, str) else None
    which = value.strip("[] ,").split(",") if isinstance(value, str) and value != "auto" else value
    if number is not None and number.is_integer():  # text of how many, as a run's config.yaml holds it
        which = int(number)
    if isinstance(which, list):
        numbers = [as_number(each) for each in which if isinstance(each, int | float | str)]
        holds = bool(which) and len({*numbers}) == len(which) and all(n is not None and n >= -1 for n in numbers)
    else:
        holds = which in ("auto", None) or (isinstance(which, int) and (which == -1 or which > 0))
    if not holds:
        raise ValueError(f"expected trainer.devices as how many (-1: all), a list of which, or auto, got {value!r}")
    if (isinstance(which, list) or which == -1) and sys.platform == "linux" and find_spec("torch_xla") is None:
        check_device("cuda", f"trainer.devices={value}")


def _check_scheduling(key: str, value: dict[Any, Any]) -> None:
    """Of Lightning's callback: from which epoch on so many batches make a step."""
    numbers = [(as_number(str(epoch)), as_number(str(batches))) for epoch, batches in value.items()]
    if not numbers or any(epoch is None or batches is None or epoch < 0 or batches < 1 for epoch, batches in numbers):
        raise ValueError(f"expected {key} as {{epoch: batches, …}} with epochs >= 0 and batches >= 1, got {value!r}")


def _check_strategy(name: str) -> None:
    """Let one of Lightning's through, a plugin's, or a class by its import path."""
    is_known = _DDP.fullmatch(name) is not None if name.startswith("ddp") else name.startswith(_STRATEGIES)
    if "." not in name and name.islower() and not is_known:
        raise ValueError(f"expected trainer.strategy such as {', '.join(_STRATEGIES)}, got {name!r}")
    if name.startswith(_ON_GPUS):
        check_device("cuda", f"trainer.strategy={name}")


def _check_accelerator(name: str) -> None:
    if name == "tpu" and find_spec("torch_xla") is None:
        raise ValueError("expected torch_xla for trainer.accelerator=tpu, found none; install it, or leave it out")
    if name in ("gpu", "cuda"):
        check_device("cuda", "trainer.accelerator")
    if name.isidentifier() and name not in _ACCELERATORS:
        near = difflib.get_close_matches(name, _ACCELERATORS, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ValueError(f"expected trainer.accelerator of {', '.join(_ACCELERATORS)}, got {name!r}{hint}")


def check_model_name(name: str, called: str = "") -> None:
    """Refuse a name under which neither timm nor castvision registers a model.

    Args:
        name: With or without a tag of weights; names of folders and hubs are let through.
        called: What stands before the name in the message, such as "model_name=".

    Raises:
        ValueError: It names similar ones.
    """
    if "timm" in sys.modules:  # a program that calls the command may have registered more
        return
    architecture = name.split(".")[0]
    if any(sign in name for sign in _ELSEWHERE) or not (known := model_names()) or architecture in known:
        return
    near = difflib.get_close_matches(architecture, sorted(known), n=2)
    hint = f", did you mean {' or '.join(near)}?" if near else "; castvision models '*' names them all"
    raise ValueError(f"unknown model {called}{name!r}{hint}")


@lru_cache
def model_names() -> frozenset[str]:
    """Names of timm's models, older ones included, of castvision's and of the trained ones it comes with.

    Empty where their sources are not found.
    """
    return registered_names() and registered_names() | {*trained_files()}


@lru_cache
def trained_files() -> dict[str, Path]:
    """The trained models that castvision comes with, by name."""
    return {path.stem: path for path in Path(str(_folder("castvision")), "weights").glob("*.safetensors")}


@lru_cache
def registered_names() -> frozenset[str]:
    """Those of them that come without weights trained for a task; empty where sources are not found."""
    folders = [_folder("castvision"), _folder("timm")]
    if None in folders:
        return frozenset()
    found: set[str] = set()
    for folder in folders:
        for path in Path(str(folder), "models").glob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(_MODEL_FUNCTION.findall(text))
            _, _, renamed = text.partition("register_model_deprecations(__name__")
            found |= set(re.findall(r"['\"](\w+)['\"]\s*:", renamed))
    return frozenset(found)


def _folder(package: str) -> Path | None:
    spec = find_spec(package)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
