"""The notebook runs from its first cell to its last, whether weights are installed or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = json.loads((ROOT / "demo/from_photograph_to_mask.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    assert all(not cell.get("outputs") for cell in NOTEBOOK["cells"])
    for cell in CODE:
        compile(cell, "cell", "exec")


@pytest.mark.slow
def test_every_cell_runs(tmp_path):
    pytest.importorskip("skimage")
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", "\n\n".join(CODE)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "EPSG:32633 (0.5, 0.0, 500000.0)" in done.stdout
    assert "IoU on the half it never saw" in done.stdout and "square metres are near" in done.stdout
