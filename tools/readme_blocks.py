#!/usr/bin/env python
"""Run every ```python block of the README and of docs/, in order, each in a fresh interpreter and an empty folder."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def find_pages() -> list[Path]:
    """The README, then the pages of docs/ by name."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def find_blocks(text: str) -> list[tuple[int, str]]:
    """Line number and source of each block."""
    return [(text.count("\n", 0, match.start()) + 2, match.group(1)) for match in BLOCK.finditer(text)]


def run_block(source: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """Run one block with the checkout importable; its output is captured."""
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [sys.executable, "-c", source],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": paths, "MPLBACKEND": "agg"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, help="Markdown files (default: README.md and docs/*.md)")
    parser.add_argument("--timeout", type=float, default=180, help="seconds a block may take (default: 180)")
    arguments = parser.parse_args()
    total = failed = 0
    for page in arguments.pages or find_pages():
        for line, source in find_blocks(page.read_text(encoding="utf-8")):
            start = time.perf_counter()
            result = run_block(source, arguments.timeout)
            total += 1
            failed += result.returncode != 0
            verdict = "ok" if result.returncode == 0 else "FAILED"
            print(f"{page.name}:{line}  {verdict}  {time.perf_counter() - start:.1f} s", flush=True)
            if result.returncode:
                print(result.stderr, file=sys.stderr)
    print(f"{total - failed} of {total} blocks ran")
    return 1 if failed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
