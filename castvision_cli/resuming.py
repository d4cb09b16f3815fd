"""A run of a command that may go on where it stopped: its settings stand beside its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import argparse

    from castvision.inference.files import OutputFolder

RUN_FILE = "run.json"


def settings_of_run(arguments: argparse.Namespace) -> dict[str, Any]:
    """What must not change between a run and its continuation."""
    passing = {"inputs", "output", "overwrite", "resume", "device", "cluster"}
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    settings = {key: value for key, value in settings.items() if key not in passing}
    for name in ("model", "weights"):
        file = Path(settings.get(name) or "")
        if file.is_file():
            settings[f"{name}_file"] = [file.stat().st_size, file.stat().st_mtime_ns]
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # as it will be read again
    return plain


def open_output(arguments: argparse.Namespace, settings: dict[str, Any], images: dict[Path, str]) -> OutputFolder:
    """The folder of a run: a new one, or with ``--resume`` one of the same settings.

    Raises:
        FileExistsError: It holds files, and neither ``--overwrite`` nor ``--resume`` is given.
        FileNotFoundError: Nothing to resume.
        ValueError: A run of other settings.
    """
    from castvision.inference.files import OutputFolder

    output, run_file = arguments.output, arguments.output / RUN_FILE
    if not (arguments.resume and output.is_dir() and any(output.iterdir())):
        return OutputFolder(output, overwrite=arguments.overwrite, protected=images)
    if not run_file.is_file():
        raise FileNotFoundError(f"nothing to resume in {str(output)!r}: no {RUN_FILE}; leave out --resume")
    earlier = json.loads(run_file.read_text(encoding="utf-8"))
    changed = [key for key in settings if earlier.get(key) != settings[key]]
    if changed:
        told = ", ".join(f"{key} was {earlier.get(key)!r}, is {settings[key]!r}" for key in changed)
        raise ValueError(f"cannot resume {str(output)!r}: {told}; use the same options, or another folder")
    return OutputFolder(output, overwrite=True, protected=images)


def begin(output: OutputFolder, settings: dict[str, Any], images: dict[Path, str], *, is_resumed: bool) -> None:
    """Write the run's settings; what an earlier run with others left of its images counts no longer as done.

    Args:
        output: The folder.
        settings: Of the run.
        images: With their names.
        is_resumed: The earlier run goes on.
    """
    from castvision.inference.files import forget

    if not is_resumed:
        forget(output.path, images.values())
    output.write(RUN_FILE, json.dumps(settings, indent=1).encode())
