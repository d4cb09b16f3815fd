"""The folder of a run: what stands in it, and whether a command may use it."""

from __future__ import annotations

from pathlib import Path

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


def check_new(folder: Path) -> None:
    """Refuse to train where another run's results are.

    Raises:
        FileExistsError: A finished run, or one that can be resumed.
    """
    if (folder / METRICS).exists():
        raise FileExistsError(f"{str(folder)!r} holds a finished run; choose another --run_dir, or move it away")
    if (folder / LAST).exists() or (folder / BEST).exists():
        raise FileExistsError(
            f"{str(folder)!r} holds an unfinished run; go on with --resume, choose another --run_dir, or move it away"
        )


def checkpoint_to_resume(folder: Path) -> Path:
    """The last checkpoint of an unfinished run.

    Raises:
        FileNotFoundError: Nothing to resume.
        FileExistsError: The run is finished.
    """
    if (folder / METRICS).exists():
        raise FileExistsError(f"nothing to resume: the run in {str(folder)!r} is finished")
    if not (folder / LAST).is_file():
        raise FileNotFoundError(
            f"nothing to resume: no {LAST} in {str(folder)!r}; check --run_dir, or leave --resume out"
        )
    return folder / LAST


def checkpoint_to_evaluate(folder: Path) -> Path:
    """The best checkpoint of a run, for validate, test and predict.

    Raises:
        FileNotFoundError: There is none, and an untrained model's figures would mean nothing.
    """
    if not (folder / BEST).is_file():
        raise FileNotFoundError(f"no {BEST} in {str(folder)!r}: give --ckpt_path FILE, or the --run_dir of a run")
    return folder / BEST
