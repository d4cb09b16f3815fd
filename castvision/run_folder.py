"""The folder of a run: what stands in it, and whether a command may use it."""

from __future__ import annotations

import csv
from pathlib import Path

from castvision.files import draft

BEST = "best.ckpt"
LAST = "last.ckpt"
METRICS = "metrics.json"
REPORT = "report.png"
CONFIG = "config.yaml"


def default_folder(config: Path | None) -> Path:
    """``runs/NAME`` for the configuration NAME; a saved one (``config.yaml``) is named after its folder."""
    if config is None:
        return Path("runs") / "run"
    return Path("runs") / (config.resolve().parent.name if config.name == CONFIG else config.stem)


def folder_to_train(given: str | None, config: Path | None, *, is_resumed: bool) -> tuple[Path, Path | None]:
    """Where to train, and the checkpoint to go on from.

    Args:
        given: ``--run_dir``; None = `default_folder`.
        config: The configuration file.
        is_resumed: Go on with an unfinished run.

    Returns:
        (run folder, its last checkpoint or None for a new run). A run killed while it wrote its very first ones has a
        best one only, which is as good.

    Raises:
        FileExistsError: A finished run, or one that can be resumed but is not.
        FileNotFoundError: Nothing to resume.
    """
    folder = Path(given) if given else default_folder(config)
    last = folder / LAST if (folder / LAST).exists() else folder / BEST
    if is_resumed:
        if (folder / METRICS).exists():
            raise FileExistsError(
                f"nothing to resume: the run in {str(folder)!r} is finished; to train longer, give another --run_dir, "
                f"--ckpt_path {str(last)!r} and a larger --trainer.max_epochs"
            )
        if not last.is_file():
            raise FileNotFoundError(
                f"nothing to resume: no {LAST} in {str(folder)!r}; check --run_dir, or leave --resume out"
            )
        return folder, last
    if (folder / METRICS).exists():
        raise FileExistsError(f"{str(folder)!r} holds a finished run; choose another --run_dir, or move it away")
    if last.exists():
        raise FileExistsError(
            f"{str(folder)!r} holds an unfinished run; go on with --resume, choose another --run_dir, or move it away"
        )
    return folder, None


def folder_to_evaluate(given: str | None, config: Path | None, ckpt_path: str | None) -> tuple[Path, Path]:
    """Where validate, test and predict write, and the checkpoint they read.

    Args:
        given: ``--run_dir``; None = `default_folder`, or the folder of a checkpoint that is given.
        config: The configuration file.
        ckpt_path: ``--ckpt_path``: a file, "best" or "last" of the run; None = "best".

    Returns:
        (run folder, checkpoint).

    Raises:
        FileNotFoundError: No checkpoint: an untrained model's metrics would mean nothing.
    """
    folder = Path(given) if given else default_folder(config)
    if ckpt_path is None:
        if not (folder / BEST).is_file():
            raise FileNotFoundError(f"no {BEST} in {str(folder)!r}: give --ckpt_path FILE, or the --run_dir of a run")
        return folder, folder / BEST
    if ckpt_path in ("best", "last"):
        return folder, folder / f"{ckpt_path}.ckpt"
    if not Path(ckpt_path).is_file():
        raise FileNotFoundError(f"expected a checkpoint at {ckpt_path!r}, found no such file")
    return (folder if given else Path(ckpt_path).parent), Path(ckpt_path)


def log_parts(folder: Path) -> list[Path]:
    """The metrics that a run logged, as CSV files: one for each part of a run that was resumed, in order."""
    return sorted(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))


def forget_after(folder: Path, step: int) -> None:
    """Take out of a run's logs what was logged after the checkpoint it goes on from, and will be logged again.

    Args:
        folder: The run's.
        step: Steps that are in the checkpoint; rows count from 0.
    """
    for part in log_parts(folder):
        with part.open(newline="") as file:
            reader = csv.DictReader(file)
            names, rows = reader.fieldnames or [], list(reader)
        kept = [row for row in rows if row["step"] and int(row["step"]) < step]
        if len(kept) == len(rows):
            continue
        with draft(part) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(kept)
