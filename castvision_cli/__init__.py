"""The console command, ``castvision VERB …``, one file a verb.

It stands beside the package, not inside it: importing anything of ``castvision`` registers its models with timm, which
takes seconds that help and a mistyped option need not wait for. What a verb needs is imported when it runs.
"""

from __future__ import annotations

import importlib
import runpy
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HELP = """\
usage: castvision VERB [ARGUMENTS]

  train             train, validate, test or predict by a configuration   castvision train --config quickstart
  data              a picture of what a model gets to see                 castvision data show --config C --output F.png
  make-pathfinder   write a Pathfinder data set                           castvision make-pathfinder OUT --img-size 32
  demo              predictions and cluster maps as pictures            castvision demo photo.jpg --model M --output DIR
  predict           masks, tables, polygons of images of any size         castvision predict IN --model M --output DIR
  evaluate          figures of a model on images with known answers       castvision evaluate --model M --images DIR
  benchmark         speed and memory on this machine, and the goals      castvision benchmark layer --quick
  timm              one of timm's own scripts, with our models            castvision timm validate.py --model M

castvision VERB --help tells more; castvision --version the version.
"""

TRAIN_HELP = """\
usage: castvision train [fit|validate|test|predict] --config NAME [OPTIONS]

  --config NAME          a YAML file, or a shipped configuration by name (below); later ones override earlier ones
  --run_dir DIR          where checkpoints, logs, report.png and metrics.json go (default: runs/NAME); never overwritten
  --resume               go on with an unfinished run; an error if there is none
  --init-from FILE       start from a checkpoint's weights (ours, timm's, safetensors), as far as they fit
  --ema DECAY            average the weights, such as 0.999
  --early_stopping N     stop after N rounds of held-out images without a better figure
  --ckpt_path FILE       for validate, test, predict (default: best.ckpt of the run)
  --model.KEY VALUE      any argument of the task:  --model.model_name vit_tiny_patch16_224 --model.optimizer.lr 1e-3
  --data.KEY VALUE       any argument of the data:  --data.batch_size 64
  --trainer.KEY VALUE    any argument of Lightning's trainer:  --trainer.max_epochs 10 --trainer.precision bf16-mixed

fit is meant if no verb is given. castvision train fit --help lists every option.
shipped configurations: {names}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        The verb's exit code; 2 for an unknown verb.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb in ("-V", "--version"):
        sys.stdout.write(f"castvision {metadata.version('castvision')}\n")
        return 0
    if verb not in VERBS:
        sys.stderr.write(f"castvision: unknown verb {verb!r}; expected one of {', '.join(VERBS)}\n")
        return 2
    return VERBS[verb](rest)


def _train(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        from castvision_cli.config_files import config_names

        sys.stdout.write(TRAIN_HELP.format(names=", ".join(config_names())))
        return 0 if arguments else 2
    return _main_of("castvision.training.cli")(arguments)


def _data(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(
            "usage: castvision data show --config NAME --output FILE.png [OPTIONS]\n\n"
            "show: draw samples after augmentation as a contact sheet; castvision data show --help tells more.\n"
        )
        return 0 if arguments else 2
    if arguments[0] != "show":
        sys.stderr.write(f"castvision data: unknown word {arguments[0]!r}; expected show\n")
        return 2
    return _main_of("castvision_cli.show_data")(arguments[1:])


def _make_pathfinder(arguments: list[str]) -> int:
    return _main_of("castvision_cli.make_pathfinder")(arguments)


def _demo(arguments: list[str]) -> int:
    return _main_of("castvision_cli.demo")(arguments)


def _predict(arguments: list[str]) -> int:
    return _main_of("castvision_cli.predict")(arguments)


def _evaluate(arguments: list[str]) -> int:
    return _main_of("castvision_cli.evaluate")(arguments)


def _benchmark(arguments: list[str]) -> int:
    return _main_of("castvision_cli.benchmark")(arguments)


def _main_of(module: str) -> Callable[[list[str]], int]:
    function: Callable[[list[str]], int] = importlib.import_module(module).main
    return function


def _timm(arguments: list[str]) -> int:
    """Run a script with our models registered; timm itself finds no plug-ins."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(
            "usage: castvision timm SCRIPT.py [ARGUMENTS]\n\nSCRIPT.py: a file of timm's repository, such as "
        )
        sys.stdout.write("train.py, validate.py, benchmark.py, onnx_export.py; it runs with our models registered.\n")
        return 0 if arguments else 2
    script = Path(arguments[0])
    if not script.is_file():
        sys.stderr.write(
            f"castvision timm: no such script: {str(script)!r}; give the path of a file of timm's repository\n"
        )
        return 2
    importlib.import_module("castvision.models")
    kept = sys.argv, list(sys.path)
    sys.argv = [str(script), *arguments[1:]]
    sys.path.insert(0, str(script.resolve().parent))  # as Python does: timm's scripts import one another
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = kept
    return 0


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "data": _data,
    "make-pathfinder": _make_pathfinder,
    "demo": _demo,
    "predict": _predict,
    "evaluate": _evaluate,
    "benchmark": _benchmark,
    "timm": _timm,
}
