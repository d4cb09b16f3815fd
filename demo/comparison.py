"""The tab Compare: one image, one set of weights, near and far beside full attention; time, memory, agreement."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from .drawing import table
from .features import in_colours
from .memory import give_back

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from castvision.inference.feature_model import FeatureModel
    from castvision.visualization.pictures import RGB

    from .sessions import Session
    from .studio import Studio

_STATUS, _MARKS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Measured(NamedTuple):
    """One call.

    Attributes:
        value: What it gave.
        seconds: By the wall.
        memory: How far the process's memory rose at most while it ran, in bytes; None where no one can tell.
    """

    value: Tensor
    seconds: float
    memory: int | None


def measure(call: Callable[[], Tensor]) -> Measured:
    """Run a call once and measure it."""
    before = _reset_peak()
    start = time.perf_counter()
    value = call()
    seconds = time.perf_counter() - start
    return Measured(value, seconds, None if before is None else max(0, _status("VmHWM") - before))


def _reset_peak() -> int | None:
    """Begin a new peak of this process's memory, and give the bytes it holds now; None but on Linux."""
    give_back()  # what earlier work left must not hide what comes
    try:
        _MARKS.write_text("5", encoding="ascii")
        return _status("VmRSS")
    except (OSError, StopIteration):
        return None


def _status(field: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


def agreement(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """How well features agree with those wanted.

    Args:
        found: (rows, cols, C).
        wanted: The same.

    Returns:
        Mean cosine of a token with itself, and the share of the wanted features' variance that is left unexplained.
    """
    cosine = functional.cosine_similarity(found, wanted, dim=-1).mean()
    middle = wanted.flatten(0, 1).mean(0)
    left = (found - wanted).square().sum() / (wanted - middle).square().sum().clamp(min=1e-12)
    return float(cosine), float(left)


def compare(studio: Studio, session: Session, side: int) -> tuple[RGB, RGB, str]:
    """Both attentions on the photograph.

    Args:
        studio: With the model.
        session: Of the page.
        side: Longer side the model sees, in pixels.

    Returns:
        Colours of near and far, of full attention (equal colours are equal features), and a table (HTML).

    Raises:
        ValueError: No photograph, one that does not fit the model, or a model that has no full attention.
    """
    model, twin = studio.model, studio.full_twin()
    prepared = model.predictor.prepare(session.chosen.pixels, side)
    small = torch.zeros_like(prepared[..., : 4 * model.patch[0], : 4 * model.patch[1]])
    runs = []
    for each in (model, twin):
        each.tokens(small)  # the first call pays for what later ones find ready
        runs.append(measure(partial(_patches, each, prepared)))
    near_far, full = runs
    cosine, left = agreement(near_far.value, full.value)
    rows: list[list[str | tuple[int, ...]]] = [
        ["near and far", f"{near_far.seconds:.2f} s", _megabytes(near_far.memory), f"{cosine:.3f}", f"{left:.3f}"],
        ["full attention", f"{full.seconds:.2f} s", _megabytes(full.memory), "1", "0"],
    ]
    tokens = near_far.value.shape[0] * near_far.value.shape[1]
    seen = " × ".join(str(each) for each in prepared.shape[-2:])
    caption = f"{session.chosen.name} at {seen}, {tokens:,} tokens; the whole model, each run once, one after the other"
    header = ["attention", "time", "memory it added", "mean cosine", "variance unexplained"]
    pictures = [in_colours(each.value, studio, full.value) for each in runs]
    return pictures[0], pictures[1], table(header, rows, caption)


def _patches(model: FeatureModel, prepared: Tensor) -> Tensor:
    return model.tokens(prepared).patches[0].cpu()


def _megabytes(memory: int | None) -> str:
    return "not known here" if memory is None else f"{memory / 1e6:.0f} MB"
