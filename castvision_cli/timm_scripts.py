"""``castvision timm``: run one of timm's own scripts with our models registered; timm itself finds no plug-ins."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HELP = """\
usage: castvision timm SCRIPT.py [ARGUMENTS]

SCRIPT.py: a file of timm's repository, such as train.py, validate.py, benchmark.py, onnx_export.py; it runs with our \
models registered.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a script.

    Args:
        argv: The script and its arguments; None = the process's.

    Returns:
        0 when the script came to its end, 2 without a script.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(HELP)
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
