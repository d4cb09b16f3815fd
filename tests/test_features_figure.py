from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def _load():
    spec = importlib.util.spec_from_file_location("features_figure", ROOT / "tools/features_figure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_weights_that_are_missing_are_one_line(tmp_path, capsys, monkeypatch):
    arguments = ["x", "a.png", str(tmp_path / "b.png"), "--weights", str(tmp_path / "no.onnx")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert _load().main() == 1
    assert "real-weights" in capsys.readouterr().err
