"""``castvision train``: what a user writes, brought into LightningCLI's form; the run is `castvision.training.cli`'s.

Configurations go by bare name: ``quickstart`` is ``configs/quickstart.yaml``, in a checkout or an installed package.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import shlex
import signal
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from castvision_cli.class_names import keep_class_names, quote_class_names
from castvision_cli.early.classes import check_classes
from castvision_cli.early.data import check_data
from castvision_cli.early.model import check_model
from castvision_cli.early.paths import check_paths_of_run, check_run_folder, read_config
from castvision_cli.early.signatures import check_named, check_options
from castvision_cli.early.synthetic import check_generated

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """\
usage: castvision train [fit|validate|test|predict] --config NAME [OPTIONS]

  --config NAME          a YAML file, or a shipped configuration by name (below); later ones override earlier ones, and
                         every other option overrides them, wherever it stands
  --run_dir DIR          where checkpoints, logs, report.png and metrics.json go (default: runs/NAME); never overwritten
  --resume               go on with an unfinished run; an error if there is none
  --init-from FILE       start from a checkpoint's weights (ours, timm's, safetensors), as far as they fit
  --ema DECAY            average the weights, such as 0.999
  --early_stopping N     stop after N rounds of held-out images without a better metric
  --allow-class PREFIX   let the configuration name classes of another package, such as my_package; it runs their code
  --ckpt_path FILE       for validate, test, predict (default: best.ckpt of the run)
  --model.KEY VALUE      any argument of the task:  --model.model_name vit_tiny_patch16_224 --model.optimizer.lr 1e-3
  --data.KEY VALUE       any argument of the data:  --data.batch_size 64
  --trainer.KEY VALUE    any argument of Lightning's trainer:  --trainer.max_epochs 10 --trainer.precision bf16-mixed

fit is meant if no verb is given. castvision train fit --help lists every option.
shipped configurations: {names}
"""
VERBS = ("fit", "validate", "test", "predict")
_SIGNALLED = 128
"""Exit codes beyond it, less it, are numbers of signals."""
_CONFIG_FLAGS = ("-c", "--config")
_ALLOW_FLAGS = ("--allow-class", "--allow_class")
_INIT_FLAG = "--model.init_args.init_from"

# jsonargparse's report of a class that may also be missing: only the middle says what is wrong.
_UNION = re.compile(
    r"Does not validate against any of the Union subtypes.*?Errors: - (.*?) - Expected a <class 'NoneType'>.*"
)
_DENIED = re.compile(
    r".*Importing '([\w.]+)' is not allowed, denied by .*? entry of the import path denylist.*", re.DOTALL
)
# What torch and numpy say, also from loader processes, whose errors come as other classes.
_NO_MEMORY = re.compile(r"out of memory|not enough memory|can't allocate memory|MemoryError")
# Lightning's advice that does not apply: small data sets need no more workers; we hand arguments over ourselves.
_NOISE = (
    ".*does not have many workers.*",
    ".*LightningCLI's args parameter is intended.*",
    ".*exists and is not empty.*",
    ".*The dirpath has changed.*",  # a finished run goes on in another folder
    ".*The number of training batches .* is smaller than the logging interval.*",
    ".*Trainer already configured with model summary callbacks.*",
    ".*is supported for historical reasons but its usage is discouraged.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*You're using the WeightAveraging callback, but.*",
    ".*You requested to overfit but.*",  # the same images each epoch are what that means
    ".*isinstance.treespec, LeafSpec.*",
    r"\s*By default only one JsonargparseDeprecationWarning",  # Lightning calls a method jsonargparse renamed
    r"(?s).*instantiate_classes",
    r"(?s).*skip_none parameter was deprecated",  # its successor is too new for the oldest release we take
)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, validate, test or predict.

    Args:
        argv: Arguments after ``castvision train``; None = the process's.

    Returns:
        0 done, 1 failed while running, 2 refused before any work; the reason is one line on the standard error stream.
        130 after Ctrl-C, 143 after SIGTERM or SIGUSR1: training can be resumed, by what one line says.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP.format(names=", ".join(config_names())))
        return 0 if arguments else 2
    _show_messages()
    expected: tuple[type[Exception], ...] = (ValueError, TypeError, OSError, KeyError, ImportError)
    stage, is_first = 2, True
    try:
        line = _checked(arguments)
        with warnings.catch_warnings():
            for noise in _NOISE:
                warnings.filterwarnings("ignore", message=noise)
            # NOTE: imported here: it takes ten seconds, and what is wrong so far should be said at once.
            from jsonargparse import ArgumentError
            from lightning.fabric.utilities.exceptions import MisconfigurationException
            from lightning.fabric.utilities.rank_zero import rank_zero_only

            from castvision.training.cli import TrainingCLI

            expected = (*expected, ArgumentError, MisconfigurationException)
            for name in ("lightning.pytorch", "lightning.fabric"):  # after the import, which sets them to INFO
                logging.getLogger(name).setLevel(logging.WARNING)
            is_first = not getattr(rank_zero_only, "rank", 0)
            if not is_first:  # of several processes one speaks
                logging.getLogger("castvision").setLevel(logging.ERROR)
            keep_class_names()
            cli = TrainingCLI(
                line.arguments, line.verb, line.config, is_resumed=line.is_resumed, allowed_classes=line.allowed_classes
            )
            stage = 1
            cli.run_verb()
    except SystemExit as end:  # argparse's --help, or training was stopped
        code = int(end.code or 0)
        if code > _SIGNALLED and is_first:
            sys.stderr.write(f"castvision train: stopped; to go on: {shlex.join(_resuming(arguments))}\n")
        return code
    except KeyboardInterrupt:
        sys.stderr.write("castvision train: stopped before training; there is nothing to resume\n")
        return _SIGNALLED + signal.SIGINT
    except Exception as error:
        is_short = _is_short_of_memory(error)
        if os.environ.get("CASTVISION_TRACEBACK") or not (is_short or isinstance(error, expected)):
            raise
        remedy = "; out of memory: set a smaller data.batch_size or data.img_size" if is_short else ""
        sys.stderr.write(f"castvision train: {one_line(error)}{remedy}\n")
        return stage
    return 0


def _checked(arguments: Sequence[str]) -> CommandLine:
    """The command line, checked as far as it can be without the library.

    Raises:
        ValueError: What is wrong; OSError likewise.
    """
    line = CommandLine(arguments)
    contents = [read_config(path) for path in line.configs]
    check_options(line.verb, line.arguments, contents, is_closed=not line.allowed_classes)
    if line.verb == "fit" and contents:
        check_named(line.arguments, contents)
    check_classes(line.arguments, contents, line.allowed_classes)
    check_paths_of_run(line.arguments, contents)
    check_run_folder(line.verb, line.arguments, line.config, contents, is_resumed=line.is_resumed)
    if "lightning" not in sys.modules:  # else the data module is as quick, and what is wrong with the model comes first
        check_data(line.arguments, contents)
        # either imports for seconds: first that of what was typed; a package of the user's may register models
        checks = [check_generated] if line.allowed_classes else [check_model, check_generated]
        for check in reversed(checks) if any(word.startswith("--data") for word in line.arguments) else checks:
            check(line.arguments, contents)
    return line


def _is_short_of_memory(error: Exception) -> bool:
    """Whether there is too little memory, of the machine or of its accelerator."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def _resuming(arguments: Sequence[str]) -> list[str]:
    """The words that go on with what was called with ``arguments``."""
    return ["castvision", "train", *(word for word in arguments if word != "--resume"), "--resume"]


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
        configs: The configuration files.
        config: The last one, or None.
        allowed_classes: Of every ``--allow-class``.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        rest = quote_class_names(arguments)
        self.verb = rest.pop(0) if rest and rest[0] in VERBS else "fit"
        self.is_resumed = "--resume" in rest
        self.configs: list[Path] = []
        self.allowed_classes: list[str] = []
        self.arguments: list[str] = []
        words = iter(word for word in rest if word != "--resume")
        for word in words:
            flag, is_joined, value = word.partition("=")
            if flag not in (*_CONFIG_FLAGS, *_ALLOW_FLAGS, "--init-from", "--init_from"):
                self.arguments.append(word)
                continue
            value = value if is_joined else next(words, "")
            if not value:
                raise ValueError(f"expected a value after {flag}")
            if flag in _CONFIG_FLAGS:
                self.configs.append(find_config(value))
            elif flag in _ALLOW_FLAGS:
                self.allowed_classes.append(value)
            else:
                self.arguments.append(f"{_INIT_FLAG}={value}")
        # the parser lets the later word win: what was typed holds, wherever the configurations stand
        self.arguments = [self.verb, *(f"--config={path}" for path in self.configs), *self.arguments]
        if self.is_resumed and self.verb != "fit":
            raise ValueError(f"--resume goes on training; it has no meaning for {self.verb}")
        self.config: Path | None = self.configs[-1] if self.configs else None


def config_folder() -> Path:
    """Where the shipped configurations are: the package's folder, or the checkout's."""
    spec = find_spec("castvision")  # found, not imported
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("expected the package castvision beside its command, found none; install it again")
    package = Path(spec.origin).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def find_config(name: str) -> Path:
    """A configuration by path or by bare name.

    Args:
        name: A file, or a shipped one's name, with or without ``.yaml``.

    Returns:
        The file.

    Raises:
        FileNotFoundError: Neither; near misses are named.
    """
    if Path(name).is_file():
        return Path(name)
    stem = name.removesuffix(".yaml")
    shipped = config_folder() / f"{stem}.yaml"
    if Path(stem).name == stem and shipped.is_file():
        return shipped
    near = difflib.get_close_matches(stem, config_names(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"shipped ones: {', '.join(config_names())}"
    raise FileNotFoundError(f"no configuration {name!r}: {hint}")


class _PlainLines(logging.Handler):
    """Messages as lines on what is standard error when they come; it may be another at the next call."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"{self.format(record)}\n")


def _show_messages() -> None:
    """Our own messages from INFO on, as plain lines."""
    ours = logging.getLogger("castvision")
    if not ours.handlers:
        ours.addHandler(_PlainLines())
        ours.propagate = False
    ours.setLevel(logging.INFO)


def one_line(error: BaseException, limit: int = 500) -> str:
    """The message on one line; of an error in a loader process without its traceback, of jsonargparse's the heart."""
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    text = " ".join(text.split()) or type(error).__name__
    text = _UNION.sub(r"\1", text)
    text = _DENIED.sub(
        r"the configuration names \1, which is not among the classes it may run; if you trust it, add --allow-class \1",
        text,
    )
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
