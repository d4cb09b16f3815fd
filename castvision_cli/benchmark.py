"""``castvision benchmark``: the measurements live in the repository's ``benchmarks/``, not in the installed package."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROOT = Path(__file__).resolve().parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the repository's benchmark; 2 where it is not there."""
    if not (_ROOT / "benchmarks" / "main.py").is_file():
        print(
            "castvision benchmark: it measures from a checkout, which an installed package is not; clone the "
            "repository and run `pip install -e .` in it",
            file=sys.stderr,
        )
        return 2
    if str(_ROOT) not in sys.path:
        sys.path.insert(0, str(_ROOT))
    from benchmarks.main import main as measure

    return measure(argv)
