"""The console command, ``castvision VERB …``, one file a verb.

It stands beside the package, not inside it: importing anything of ``castvision`` registers its models with timm, which
takes seconds that help and a mistyped option need not wait for. What a verb needs is imported when it runs.
"""

from __future__ import annotations

import atexit
import difflib
import gc
import importlib
import io
import logging
import os
import sys
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castvision.inference.folder_lock import FolderLock

HELP = """\
usage: castvision VERB [ARGUMENTS]

  train             train, validate, test or predict by a configuration   castvision train --config quickstart
  data              a picture of what a model gets to see                 castvision data show --config C --output F.png
                    masks of what was annotated in other tools            castvision data convert IN --output DIR
  make-pathfinder   write a Pathfinder data set                           castvision make-pathfinder OUT --img-size 32
  demo              predictions and cluster maps as pictures            castvision demo photo.jpg --model M --output DIR
                    a page in the browser                               castvision demo --web
  predict           masks, tables, polygons of images of any size         castvision predict IN --model M --output DIR
  embed             features of images by a pretrained ViT          castvision embed IN --model M --output DIR
  evaluate          metrics of a model on images with known answers       castvision evaluate --model M --images DIR
  models            registered models and what each costs                castvision models '*dinov2*'
  convert           near and far put into a pretrained ViT       castvision convert vit_base_patch16_224 --output DIR
  export            a model for timm, transformers, ONNX, torch       castvision export CKPT --format hf --output DIR
  benchmark         speed and memory on this machine, and the goals      castvision benchmark layer --quick
  timm              one of timm's own scripts, with our models            castvision timm validate.py --model M
  completion        a script that completes words in a shell                castvision completion bash

castvision VERB --help tells more; castvision --version the version.
exit code: 0 done, 1 failed while running or for some images, 2 wrong arguments (nothing was written), 130 interrupted,
143 terminated; see docs/commands.md
"""

DATA_HELP = """\
usage: castvision data show --config NAME --output FILE.png [OPTIONS]
       castvision data convert EXPORT --output DIR [OPTIONS]

show: draw samples after augmentation as a contact sheet; castvision data show --help tells more.
convert: masks and lists from LabelMe, CVAT and Label Studio; castvision data convert --help tells more.
"""
DATA_WORDS = {"show": "show_data", "convert": "convert_data"}
"""What follows ``castvision data``, and the module that runs it."""
VERBS = {
    "train": "train",
    "data": "show_data",
    "make-pathfinder": "make_pathfinder",
    "demo": "demo",
    "predict": "predict",
    "embed": "embed",
    "evaluate": "evaluate",
    "export": "export",
    "models": "models",
    "convert": "convert",
    "benchmark": "benchmark",
    "timm": "timm_scripts",
    "completion": "completion",
}
"""The module of this package that runs each verb, by its ``main``."""
_WRONG = 2
"""The exit code of wrong arguments."""
_PIPE = 141
"""The exit code where nobody reads the output to its end: as a shell gives it after SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        The verb's exit code; 2 for an unknown verb.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may have bytes that no terminal shows
    if argv is not None:
        return _answer(list(argv))
    try:
        code = _answer(_start_process())
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the last flush would fail again
        return _PIPE
    if code == _WRONG:
        _leave_at_once(code)
    return code


def _answer(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(HELP)
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb in ("-V", "--version"):
        sys.stdout.write(f"castvision {metadata.version('castvision')}\n")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        sys.stderr.write(f"castvision: unknown verb {verb!r}; expected one of {', '.join(VERBS)}{hint}\n")
        return 2
    module = VERBS[verb]
    if verb == "data":
        word, *rest = rest or [""]
        if word not in DATA_WORDS:
            return _without_word([word, *rest] if word else [])
        module = DATA_WORDS[word]
    if verb == "train":  # which has an answer of its own to signals
        return _run(module, rest)
    from castvision_cli.stopping import exit_code, terminable, told

    try:
        with terminable():
            return _run(module, rest)
    except KeyboardInterrupt as stop:
        sys.stderr.write(f"castvision {verb}: {told(stop)}; nothing more is written\n")
        return exit_code(stop)


def _start_process() -> list[str]:
    """The process's arguments; cycles of garbage are looked for more seldom from here on, and not at all at the end.

    Libraries make a million objects that stay: looking through them takes a third of the time until a command answers.
    """
    gc.set_threshold(10_000, 20, 20)
    atexit.register(gc.freeze)
    return sys.argv[1:]


def _leave_at_once(code: int) -> None:
    """End the process without taking the imported libraries apart, which takes time: nothing was begun."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _run(module: str, arguments: list[str]) -> int:
    run: Callable[[list[str]], int] = importlib.import_module(f"castvision_cli.{module}").main
    earlier = _locks()
    try:
        return run(arguments)
    finally:  # an error kept somewhere (by zarr's threads) keeps all variables of the verb, its output folder too
        for lock in _locks() - earlier:
            lock.release()


def _locks() -> set[FolderLock]:
    """Locks of folders; what takes them is imported by the verbs that write into one, and by nothing before."""
    module = sys.modules.get("castvision.inference.folder_lock")
    return set() if module is None else set(module.held.values())


def _without_word(arguments: list[str]) -> int:
    """What ``castvision data`` answers to anything but its words."""
    if arguments and arguments[0] not in ("-h", "--help"):
        expected = " or ".join(DATA_WORDS)
        sys.stderr.write(f"castvision data: unknown word {arguments[0]!r}; expected {expected}\n")
        return 2
    sys.stdout.write(DATA_HELP)
    return 0 if arguments else 2
