"""``castvision train``: LightningCLI over our tasks and data modules, with run folders that nothing overwrites."""

from __future__ import annotations

import logging
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from castvision.training.run_folder import (
    check_new,
    checkpoint_to_evaluate,
    checkpoint_to_resume,
    default_folder,
)
from castvision_cli.config_files import find_config

if TYPE_CHECKING:
    from collections.abc import Sequence

# jsonargparse's report of a class that may also be missing: only the middle says what is wrong.
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes.*?Errors: - (.*?) - Expected a <class 'NoneType'>.*"
)

VERBS = ("fit", "validate", "test", "predict")
_CONFIG_FLAGS = ("-c", "--config")
_INIT_FLAG = "--model.init_args.init_from"
# Lightning's advice that does not apply: small data sets need no more workers; we hand arguments over ourselves.
_NOISE = (
    ".*does not have many workers.*",
    ".*LightningCLI's args parameter is intended.*",
    ".*exists and is not empty.*",
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*Trainer already configured with model summary callbacks.*",
    ".*is supported for historical reasons but its usage is discouraged.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*You're using the WeightAveraging callback, but.*",
    ".*isinstance.treespec, LeafSpec.*",
    r"\s*By default only one JsonargparseDeprecationWarning",  # Lightning calls a method jsonargparse renamed
    r"(?s).*instantiate_classes",
    r"(?s).*skip_none parameter was deprecated",  # its successor is too new for the oldest release we take
)


class CommandLine:
    """The arguments as a user writes them, brought into LightningCLI's form.

    Args:
        arguments: After ``castvision train``.

    Raises:
        FileNotFoundError: An unknown configuration.
        ValueError: A flag without its value.

    Attributes:
        verb: fit, validate, test or predict; fit if none is given.
        arguments: For LightningCLI.
        is_resumed: Whether ``--resume`` stood there.
        config: The last configuration file, or None.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        rest = list(arguments)
        self.verb = rest.pop(0) if rest and rest[0] in VERBS else "fit"
        self.is_resumed = "--resume" in rest
        self.config: Path | None = None
        self.arguments = [self.verb]
        words = iter(word for word in rest if word != "--resume")
        for word in words:
            flag, is_joined, value = word.partition("=")
            if flag not in (*_CONFIG_FLAGS, "--init-from", "--init_from"):
                self.arguments.append(word)
                continue
            value = value if is_joined else next(words, "")
            if not value:
                raise ValueError(f"expected a value after {flag}")
            if flag in _CONFIG_FLAGS:
                self.config = find_config(value)
                self.arguments.append(f"--config={self.config}")
            else:
                self.arguments.append(f"{_INIT_FLAG}={value}")
        if self.is_resumed and self.verb != "fit":
            raise ValueError(f"--resume goes on training; it has no meaning for {self.verb}")


def main(argv: Sequence[str] | None = None) -> int:
    """Train, validate, test or predict.

    Args:
        argv: Arguments after ``castvision train``; None = the process's.

    Returns:
        0 done, 1 failed while running, 2 refused before any work; the reason is one line on the standard error stream.
    """
    _show_messages()
    stage = 2
    try:
        line = CommandLine(sys.argv[1:] if argv is None else argv)
        with warnings.catch_warnings():
            for noise in _NOISE:
                warnings.filterwarnings("ignore", message=noise)
            cli = _make_cli(line)
            stage = 1
            cli.run_verb()
    except SystemExit as end:  # argparse's --help
        return int(end.code or 0)
    except _expected() as error:
        if os.environ.get("CASTVISION_TRACEBACK"):
            raise
        sys.stderr.write(f"castvision train: {one_line(error)}\n")
        return stage
    return 0


class _PlainLines(logging.Handler):
    """Messages as lines on what is standard error when they come; it may be another at the next call."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def _show_messages() -> None:
    """Ours, as plain lines."""
    ours = logging.getLogger("castvision")
    if not ours.handlers:
        ours.addHandler(_PlainLines())
        ours.propagate = False
    ours.setLevel(logging.INFO)


def _expected() -> tuple[type[Exception], ...]:
    from jsonargparse import ArgumentError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return (ValueError, TypeError, OSError, ArgumentError, MisconfigurationException, KeyError)


def one_line(error: BaseException, limit: int = 500) -> str:
    """The message on one line; of an error in a loader process without its traceback, of jsonargparse's the heart."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    text = " ".join(text.split()) or type(error).__name__
    text = _UNION.sub(r"\1", text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _make_cli(line: CommandLine) -> Any:
    # NOTE: imported here: it takes ten seconds, and a wrong configuration name should be said at once.
    from castvision.training.lightning_cli import TrainingCLI

    for name in ("lightning.pytorch", "lightning.fabric"):  # after the import, which sets them to INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    return TrainingCLI(line)


def choose_folder(line: CommandLine, given: str | None, ckpt_path: str | None) -> tuple[Path, Path | None]:
    """Where a command works, and the checkpoint it starts from.

    Args:
        line: The command line.
        given: ``--run_dir``.
        ckpt_path: ``--ckpt_path``.

    Returns:
        (run folder, checkpoint or None).

    Raises:
        FileExistsError: Training would touch another run's results.
        FileNotFoundError: Nothing to resume or to evaluate.
    """
    folder = Path(given) if given else default_folder(line.config)
    if line.verb == "fit":
        if line.is_resumed:
            return folder, checkpoint_to_resume(folder)
        check_new(folder)
        return folder, None if ckpt_path is None else Path(ckpt_path)
    if ckpt_path is None:
        return folder, checkpoint_to_evaluate(folder)
    if ckpt_path in ("best", "last"):
        return folder, folder / f"{ckpt_path}.ckpt"
    if not Path(ckpt_path).is_file():
        raise FileNotFoundError(f"expected a checkpoint at {ckpt_path!r}, found no such file")
    return (folder if given else Path(ckpt_path).parent), Path(ckpt_path)
