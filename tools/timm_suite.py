#!/usr/bin/env python
"""Run timm's own model tests, and our contract tests, on registered variants.

    python tools/timm_suite.py                                 every cast_* variant
    python tools/timm_suite.py --models 'cast_vit_tiny_*'      some of them
    python tools/timm_suite.py --tests DIR -- -k fx -x         timm's tests at hand; further arguments for pytest

timm's wheel has no tests but its source distribution does: the one of the installed version is fetched by pip and kept
in the cache folder. No text of timm's is part of this project.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CONTRACT = ROOT / "tests" / "models" / "test_timm_contract.py"
OUTCOMES = ("passed", "failed", "skipped")


def parse_arguments() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "castvision"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cast_*"], help="wildcards of model names (default: cast_*)")
    parser.add_argument("--module", default="castvision", help="module whose import registers them")
    parser.add_argument(
        "--part", choices=("all", "timm", "contract"), default="all", help="timm's tests, ours, or both"
    )
    parser.add_argument("--tests", type=Path, help="folder with timm's test_models.py (default: fetched)")
    parser.add_argument("--cache", type=Path, default=cache, help=f"where fetched tests are kept (default: {cache})")
    parser.add_argument("--jobs", default="auto", help="pytest processes (default: one per core; 0: none)")
    parser.add_argument("--json", type=Path, default=Path("timm_suite.json"), help="file for all outcomes")
    parser.add_argument("pytest", nargs="*", help="further arguments for pytest, after --")
    return parser.parse_args()


def fetch_tests(cache: Path) -> Path:
    """The tests of the installed timm, downloaded unless they are in the cache.

    Raises:
        FileNotFoundError: If the source distribution holds no tests.
    """
    version = importlib.metadata.version("timm")
    target = cache / f"timm-{version}-tests"
    if (target / "test_models.py").is_file():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        command = ["pip", "download", "--no-deps", "--no-binary", "timm", "--dest", folder, f"timm=={version}"]
        subprocess.run([sys.executable, "-m", *command, "--quiet", "--disable-pip-version-check"], check=True)
        archive = next(Path(folder).glob("timm-*.tar.gz"))
        with tarfile.open(archive) as tar:
            tar.extractall(folder, [m for m in tar if "/tests/" in m.name], filter="data")
        tests = Path(folder) / f"timm-{version}" / "tests"
        if not (tests / "test_models.py").is_file():
            raise FileNotFoundError(
                f"expected tests/test_models.py in {archive.name}, found none; name a folder: --tests"
            )
        tests.rename(target)
    return target


def run_pytest(arguments: argparse.Namespace, files: list[Path], report: Path) -> int:
    """Run pytest with the plugin, free of this project's settings (timm's tests warn a lot)."""
    paths = [str(ROOT / "tools"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "TIMM_SUITE_MODULE": arguments.module,
        "TIMM_SUITE_MODELS": ",".join(arguments.models),
        "TIMM_SUITE_REPORT": str(report),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }
    options = ["-p", "timm_suite_plugin", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(ROOT)]
    options += ["--import-mode=importlib", "-q", "--tb=short", "--disable-warnings", "--timeout=600"]
    jobs = [] if arguments.jobs == "0" else ["-n", arguments.jobs]
    command = [sys.executable, "-m", "pytest", *options, *jobs, *arguments.pytest, *map(str, files)]
    return subprocess.run(command, env=environment, check=False).returncode


def print_table(rows: list[dict[str, Any]]) -> None:
    """Counts per variant, then each failure and, once per test, why something was skipped."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="timm's contract", caption=f"timm {importlib.metadata.version('timm')}")
    for heading in ("variant", *OUTCOMES):
        table.add_column(heading, justify="left" if heading == "variant" else "right", no_wrap=True)
    for variant in sorted({row["variant"] for row in rows}):
        counts = Counter(row["outcome"] for row in rows if row["variant"] == variant)
        table.add_row(variant or "(no variant)", *(str(counts[outcome]) for outcome in OUTCOMES))
    console.print(table)
    for row in (row for row in rows if row["outcome"] == "failed"):
        console.print(
            f"failed   {row['test']}[{row['parameters']}]: {row['reason']}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    for test, reason in sorted({(row["test"], row["reason"]) for row in rows if row["outcome"] == "skipped"}):
        console.print(f"skipped  {test}: {reason}", markup=False, highlight=False, soft_wrap=True)


def main() -> int:
    arguments = parse_arguments()
    files = []
    if arguments.part != "contract":
        tests = arguments.tests or fetch_tests(arguments.cache)
        if not (tests / "test_models.py").is_file():
            sys.exit(f"expected a folder with timm's test_models.py, got --tests {tests}")
        files.append(tests.resolve() / "test_models.py")
    if arguments.part != "timm":
        files.append(CONTRACT)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        code = run_pytest(arguments, files, report)
        if not report.is_file():
            return code or 1
        rows = json.loads(report.read_text(encoding="utf-8"))
    arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print_table(rows)
    return code


if __name__ == "__main__":
    sys.exit(main())
