from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from castvision_cli import benchmark

ROOT = Path(benchmark.__file__).resolve().parent.parent


def test_an_installed_package_says_how_to_get_the_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark, "_ROOT", tmp_path)
    assert benchmark.main(["--help"]) == 2
    error = capsys.readouterr().err
    assert "clone the repository and run `pip install -e .` in it" in error and error.count("\n") == 1


def test_a_checkout_is_measured_from_any_folder(tmp_path: Path) -> None:
    for package in ("castvision", "castvision_cli"):  # as an editable installation: nothing leads to benchmarks
        (tmp_path / package).symlink_to(ROOT / package)
    code = "import sys; from castvision_cli import main; sys.exit(main(['benchmark', 'tiles']))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "expected levels of op, layer" in done.stderr
