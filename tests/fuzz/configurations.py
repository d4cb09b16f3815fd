"""Mutated configurations through the parser of ``castvision train``.

``python -m tests.fuzz.configurations DIR FIRST END``. Nothing is trained: what parses is built, and dropped.
"""

from __future__ import annotations

import copy
import io
import os
import random
import resource
import signal
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from castvision_cli import train
from castvision_cli.train import config_folder
from tests.fuzz.doors import open_files

LONGEST = 10
"""Seconds of processor time that a configuration may take."""
_MEMORY = 12 << 30
_ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2,
    3.5,
    -0.5,
    1e6,
    10**6,
    2**31,
    2**63,
    10**30,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../..",
    "/",
    "~",
    "1e6",
    "00:00:00:00",
    "auto",
    "cuda",
    "tpu",
    "bf16-mixed",
    [],
    {},
    [1],
    [[]],
    {"a": 1},
    {"class_path": "os.system"},
    {"class_path": "SegmentationTask"},
    {"class_path": "torch.optim.SGD", "init_args": {"lr": -1}},
    "None",
    "é\u2028",
    "a: b",
    "\0",
)
_BASE = {"trainer": {"accelerator": "cpu", "max_epochs": 1}}
NAMES = ("quickstart", "pathfinder32", "pathfinder_seg32", "maze64", "region64", "pathx128")


def sources() -> list[str]:
    """Shipped configurations whose data are made while training."""
    folder = config_folder()
    return [(folder / f"{name}.yaml").read_text() for name in NAMES if (folder / f"{name}.yaml").is_file()]


def make(number: int) -> str:
    """The configuration of a number."""
    rng = random.Random(number)
    text = rng.choice(sources())
    if rng.random() < 0.25:
        return _change_text(rng, text)
    content = yaml.safe_load(text)
    content["trainer"] = {**content.get("trainer", {}), **_BASE["trainer"]}
    for _ in range(rng.choice((1, 1, 2, 4))):
        _change(rng, content)
    return yaml.safe_dump(content, allow_unicode=True)


def _change_text(rng: random.Random, text: str) -> str:
    first, last = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    odd = rng.choice(
        [
            "",
            ":",
            "- ",
            "{",
            "]",
            "\t",
            "&a *a",
            "!!python/object/apply:os.system [id]",
            "\x07",
            "<<: 3",
            text[first:last],
        ]
    )
    return text[:first] + odd + text[rng.choice((first, last)) :]


def _change(rng: random.Random, content: Any) -> None:
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            places.append((node, key))
            walk(value)

    walk(content)
    if not places:
        return
    node, key = rng.choice(places)
    how = rng.random()
    if how < 0.15:
        del node[key]
    elif how < 0.25 and isinstance(node, dict):
        node[rng.choice((str(key)[:-1], f"{key}x", "class_path", "init_args", "img_size", "batch_size"))] = _odd(rng)
    else:
        node[key] = _odd(rng)


def _odd(rng: random.Random) -> Any:
    """A value of its own: the next change may be one inside it."""
    return copy.deepcopy(rng.choice(_ODD))


def wrong_with(text: str, folder: Path) -> str | None:
    """What is wrong with the answer to a configuration; None if it is built, or refused in one line."""
    path = folder / "mutated.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    errors = io.StringIO()
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(errors):
            # NOTE: in place of training; everything before it is as in the command
            with mock.patch("castvision.training.cli.TrainingCLI.run_verb"):
                code = train.main(["--config", str(path), "--run_dir", str(folder / "run")])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    told = [line for line in errors.getvalue().splitlines() if line.startswith("castvision train: ")]
    if code not in (0, 2) or (code == 2 and len(told) != 1) or "Traceback" in errors.getvalue():
        return f"exit code {code}: {errors.getvalue()[-500:]!r}"
    return None


_running = ""


def _stop(*_: object) -> None:
    os.write(1, f"! {_running}: longer than {LONGEST} s\n".encode())  # sys.stdout may be redirected
    os._exit(0)


def main(folder: Path, first: int, end: int) -> None:
    """Configurations first..end - 1; a line for each that begins, and for each finding."""
    global _running
    out = sys.stdout
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    wrong_with(sources()[0], folder)  # imports and compiles
    signal.signal(signal.SIGPROF, _stop)
    for number in range(first, end):
        _running = str(number)
        out.write(f"{number}\n")
        out.flush()
        before = open_files()
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        wrong = wrong_with(make(number), folder)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if wrong is None and open_files() > before:
            wrong = f"{open_files() - before} file(s) stay open"
        if wrong is not None:
            out.write(f"! {number}: {' '.join(wrong.split())}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
