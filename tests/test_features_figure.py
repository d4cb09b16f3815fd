from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent


def _load():
    spec = importlib.util.spec_from_file_location("features_figure", ROOT / "tools/features_figure.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_equal_features_have_equal_colours_and_others_do_not():
    torch.manual_seed(0)
    wanted = torch.randn(6, 8, 16)
    tool = _load()
    colours = tool.principal(wanted, wanted)
    assert colours.shape == (6, 8, 3)
    assert 0 <= colours.min() < 0.1 < 0.9 < colours.max() <= 1
    assert torch.equal(tool.principal(wanted, wanted), colours)
    other = wanted.clone()
    other[2, 3] += 3
    changed = (tool.principal(other, wanted) != colours).any(-1)
    assert changed[2, 3]
    assert changed.sum() == 1


def test_weights_that_are_missing_are_one_line(tmp_path, capsys, monkeypatch):
    arguments = ["x", "a.png", str(tmp_path / "b.png"), "--weights", str(tmp_path / "no.onnx")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert _load().main() == 1
    assert "real-weights" in capsys.readouterr().err
