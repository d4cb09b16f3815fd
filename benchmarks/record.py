"""Measurements, what and which machine they are of, and the JSON file that keeps them, written after each one."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class Key:
    """What a measurement is of; everything but ``quantity`` also says how to build it (:mod:`.subjects`).

    Attributes:
        level: A name of :data:`benchmarks.levels.LEVELS`.
        subject: The competitor: "cast", "cast-anchors", "sdpa", a model's name …
        size: Tokens N, or pixels a side for "model" and "data".
        dtype: "fp32" or "bf16".
        phase: "forward" or "training" (forward and backward).
        device: "cpu" or "cuda".
        inputs: "random"; or, where routing is looked at, the share of tokens that are all alike, such as "50% blank".
        quantity: "seconds", "bytes", "flops", "flops/s", "parameters", "images/s" or "megapixels/s".
    """

    level: str
    subject: str
    size: int
    dtype: str = "fp32"
    phase: str = "forward"
    device: str = "cpu"
    inputs: str = "random"
    quantity: str = "seconds"

    def of(self, **changes: Any) -> Key:
        """The same key with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Measurement:
    """A measured value.

    Attributes:
        key: What was measured.
        value: Median of the repeats.
        low: First quartile.
        high: Third quartile.
        repeats: Number of samples; 0 for a value worked out from others.
        note: Anything a reader must know.
    """

    key: Key
    value: float
    low: float
    high: float
    repeats: int = 1
    note: str = ""


def single_measurement(key: Key, value: float, note: str = "", repeats: int = 1) -> Measurement:
    """A measurement without a spread."""
    return Measurement(key, float(value), float(value), float(value), repeats, note)


class Results:
    """All measurements of a run, by key, and what could not be measured, on disk after every change.

    Args:
        path: The JSON file. One that exists must be an unfinished run of the same header, which then goes on.
        header: Machine and settings, plain values.

    Raises:
        FileExistsError: The file holds a finished run, or one of another machine or other settings.
        ValueError: The file is not one of ours.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, json.loads(json.dumps(header))
        self.measurements: dict[Key, Measurement] = {}
        self.failures: dict[str, str] = {}
        self.finished = False
        if path.exists():
            self._go_on(_read(path))

    def add(self, measurements: Iterable[Measurement], failures: Mapping[str, str] | None = None) -> None:
        """Keep measurements, and reasons by title for what gave none, and write the file."""
        self.measurements.update({each.key: each for each in measurements})
        self.failures.update(failures or {})
        self._write()

    def finish(self) -> None:
        """Mark the run complete."""
        self.finished = True
        self._write()

    def value(self, key: Key) -> float | None:
        """The median, or None where it was not measured."""
        found = self.measurements.get(key)
        return None if found is None else found.value

    def _go_on(self, found: dict[str, Any]) -> None:
        if found["finished"] or found["header"] != self.header:
            why = "a finished run" if found["finished"] else "a run of another machine or other settings"
            raise FileExistsError(f"{self.path} holds {why}; choose another folder with --output")
        self.measurements = _measurements_of(found)

    def _write(self) -> None:
        content = {
            "format": FORMAT, "header": self.header, "finished": self.finished, "failures": self.failures,
            "figures": [asdict(each) for each in self.measurements.values()],
        }  # fmt: skip
        self.path.parent.mkdir(parents=True, exist_ok=True)
        from castvision.files import draft  # late: help needs no torch

        with draft(self.path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_results(path: Path) -> Results:
    """A run from its file, finished or not, to look at.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is not one of ours.
    """
    found = _read(path)
    results = Results(path.with_name(f".{path.name}.unwritten"), found["header"])
    results.path, results.finished, results.failures = path, found["finished"], found["failures"]
    results.measurements = _measurements_of(found)
    return results


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}); choose another folder") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise ValueError(f"expected a benchmark of format {FORMAT} in {path}; choose another folder")
    return found


def _measurements_of(found: dict[str, Any]) -> dict[Key, Measurement]:
    measurements = (Measurement(**{**entry, "key": Key(**entry["key"])}) for entry in found["figures"])
    return {each.key: each for each in measurements}


def describe_processor() -> dict[str, str]:
    """Processor and versions that a speed of the generators belongs to."""
    import numba
    import numpy as np

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux: the platform's own word will do
    return {
        "cpu": model,
        "python": platform.python_version(),
        "numba": numba.__version__,
        "numpy": np.__version__,
    }


def describe_machine() -> dict[str, str | int]:
    """Processor, cores, accelerator and versions, plain values."""
    import timm
    import torch

    import castvision

    described: dict[str, str | int] = {
        **describe_processor(),
        "cores": os.cpu_count() or 1,
        "instructions": "+".join(find_instructions()),
        "system": platform.platform(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "castvision": castvision.__version__,
    }
    if torch.cuda.is_available():
        described |= {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}
    return described


def name_processor(machine: Mapping[str, str | int], device: str) -> str:
    """What a run on ``device`` ran on, of a described machine: "AMD EPYC, AVX512+bf16"."""
    processor = f"{machine['cpu']}, {machine['instructions']}"
    return f"{machine['gpu']} beside {processor}" if device == "cuda" else processor


def find_hardware(device: str) -> frozenset[str]:
    """What goals may ask for and is here, when the run is on ``device``: "cpu", "cpu amx", "2 cores", "cuda"."""
    if device == "cuda":
        return frozenset({"cuda"})
    found = {"cpu"}
    if "AMX" in find_instructions():
        found.add("cpu amx")
    if (os.cpu_count() or 1) >= 2:
        found.add("2 cores")
    return frozenset(found)


def find_instructions() -> list[str]:
    """The vectors torch uses here, such as AVX512, then "bf16" and "AMX" where there are instructions for them."""
    import torch

    found = [torch.backends.cpu.get_cpu_capability()]
    if torch.cpu._is_avx512_bf16_supported():
        found.append("bf16")
    if torch.cpu._is_amx_tile_supported():
        found.append("AMX")
    return found


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 itself; otherwise torch converts every product's operands to fp32."""
    return not {"bf16", "AMX"}.isdisjoint(find_instructions())
