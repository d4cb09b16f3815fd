"""A script that completes verbs, options and files in a shell. ``castvision completion``."""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from typing import TYPE_CHECKING

from castvision_cli.arguments import new_parser

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION = "Print a script that completes castvision's verbs, options and files in a shell."

_EPILOG = """\
examples:
  %(prog)s bash > ~/.local/share/bash-completion/completions/castvision
  %(prog)s zsh > ~/.zsh/completions/_castvision           a folder of $fpath
  %(prog)s tcsh > ~/.castvision.tcsh                      then: source ~/.castvision.tcsh

exit code: 0 done, 2 wrong arguments, or shtab is missing
"""
SHELLS = ("bash", "zsh", "tcsh")
"""What shtab writes for."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser("castvision completion", _DESCRIPTION, _EPILOG)
    parser.add_argument("shell", choices=SHELLS, help="for which shell")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the script.

    Args:
        argv: Arguments; None = the process's.

    Returns:
        0 done, 2 shtab is missing.
    """
    arguments = build_parser().parse_args(argv)
    try:
        import shtab
    except ImportError:
        print("castvision completion: error: this needs shtab: pip install 'castvision[completion]'", file=sys.stderr)
        return 2
    print(shtab.complete(whole_parser(), arguments.shell))
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all verbs, for a library that reads parsers; the verbs are run by their own."""
    from castvision_cli import DATA_WORDS, VERBS

    whole = argparse.ArgumentParser(prog="castvision")
    whole.add_argument("--version", action="store_true", help="print the version")
    verbs = whole.add_subparsers(title="verbs", dest="verb")
    for verb, module in VERBS.items():
        if verb != "data":
            _add(verbs, verb, module)
    words = verbs.add_parser("data", help="what a model gets to see; annotations of other tools").add_subparsers(
        title="words", dest="word"
    )
    for word, module in DATA_WORDS.items():
        _add(words, word, module)
    return whole


def _add(parsers: argparse._SubParsersAction[argparse.ArgumentParser], verb: str, name: str) -> None:
    """A verb's own parser or, of one that another library parses, the options that its help names."""
    module = importlib.import_module(f"castvision_cli.{name}")
    if hasattr(module, "build_parser"):
        own = module.build_parser()
        told = str(own.description or "").strip().splitlines()[0].replace("%", "%%")
        parsers.add_parser(verb, parents=[own], add_help=False, help=told)
        return
    parser = parsers.add_parser(verb, help=str(module.__doc__).splitlines()[0].replace("%", "%%"))
    for flag in dict.fromkeys(re.findall(r"^ +(--[a-z][\w-]*)(?= )", getattr(module, "HELP", ""), re.MULTILINE)):
        parser.add_argument(flag)
