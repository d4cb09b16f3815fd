"""The command line of the web demo, without gradio and without a model."""

from __future__ import annotations

import builtins
import sys

import pytest

from castvision_cli import main
from castvision_cli.web_demo import _is_loopback, build_parser, find_app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "no such image or folder: 'nowhere.jpg'"),
        (["--model", "runs/none/best.ckpt"], "no such checkpoint or folder"),
        (["--segmenter", "runs/none/best.ckpt"], "no such checkpoint or folder"),
        (["--weights", "none.safetensors"], "none.safetensors"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_before_anything_is_loaded(arguments, message, capsys):
    assert main(["demo", "--web", *arguments]) == 2
    told = capsys.readouterr().err
    assert told.startswith("castvision demo --web: error: ")
    assert message in told
    assert told.count("\n") == 1


def test_without_gradio_the_remedy_is_told(monkeypatch, capsys):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name == "gradio":
            raise ModuleNotFoundError("No module named 'gradio'", name="gradio")
        return real(name, *args, **kwargs)

    for name in [each for each in sys.modules if each.split(".")[0] == "castvision_demo"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"castvision\[demo\]"):
        find_app()


def test_loopback_by_default_and_told_apart():
    assert _is_loopback(build_parser().parse_args([]).listen)
    assert all(_is_loopback(each) for each in ("localhost", "127.0.0.2", "::1"))
    assert not any(_is_loopback(each) for each in ("0.0.0.0", "::", "192.168.1.5", "my-machine"))


def test_help_of_the_page(capsys):
    with pytest.raises(SystemExit) as end:
        main(["demo", "--web", "--help"])
    assert end.value.code == 0
    assert "--segmenter" in capsys.readouterr().out
