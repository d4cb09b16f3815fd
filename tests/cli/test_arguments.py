from __future__ import annotations

import argparse
import sys
from importlib.machinery import ModuleSpec

import pytest

from castvision_cli.arguments import above_zero, check_device, from_zero, natural, new_parser, positive, share


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [(positive, "1", 1), (natural, "0", 0), (from_zero, "0", 0.0), (above_zero, "1e-3", 1e-3), (share, "1", 1.0)],
)
def test_the_edge_of_each_range_is_taken(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (positive, "0", "a whole number >= 1, got '0'"),
        (positive, "1.5", "a whole number >= 1, got '1.5'"),
        (natural, "-1", "a whole number >= 0, got '-1'"),
        (from_zero, "inf", "a number >= 0, got 'inf'"),
        (from_zero, "nan", "a number >= 0, got 'nan'"),
        (above_zero, "0", "a number > 0, got '0'"),
        (share, "1.01", r"a number in 0\.\.1, got '1.01'"),
        (share, "many", r"a number in 0\.\.1, got 'many'"),
    ],
)
def test_what_is_beyond_is_refused(kind, text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        kind(text)


def test_a_mistyped_option_is_answered_with_the_nearest(capsys):
    parser = new_parser("castvision x", "", "")
    parser.add_argument("--output", required=True)
    parser.add_argument("--overwrite", action="store_true")
    for words, told in (
        (["--ouput", "a"], "did you mean --output in place of --ouput?"),
        (["--output", "a", "--overwritte"], "did you mean --overwrite in place of --overwritte?"),
        (["--outptu=a"], "did you mean --output in place of --outptu?"),
    ):
        with pytest.raises(SystemExit) as end:
            parser.parse_args(words)
        assert end.value.code == 2
        assert told in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parser.parse_args(["--overw"])
    assert "did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("built", "has_driver", "message"),
    [
        ("cuda: Optional[str] = None\nhip: Optional[str] = None\n", True, "torch is installed without CUDA"),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", False, "driver .* is not installed"),
        ("cuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", True, None),
        ("cuda: Optional[str] = None\nhip: Optional[str] = '6.4'\n", False, None),
        ("", False, None),
    ],
)
def test_a_gpu_that_cannot_be_there_is_refused_without_torch(tmp_path, monkeypatch, built, has_driver, message):
    """What torch was built with, as its version says, and the system's driver; what they do not tell is torch's."""
    (tmp_path / "version.py").write_text(built)
    spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("castvision_cli.arguments.find_spec", lambda name: spec)
    monkeypatch.setattr("castvision_cli.arguments._has_library", lambda name: has_driver)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    check_device("auto")
    check_device("cpu")
    if message is None:
        check_device("cuda")
        return
    with pytest.raises(ValueError, match=message):
        check_device("cuda:1")
