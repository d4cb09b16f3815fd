from __future__ import annotations

import subprocess
import sys

import pytest

from castvision_cli import VERBS
from castvision_cli.completion import main, whole_parser


def test_every_verb_and_its_options_are_in_one_parser() -> None:
    (verbs,) = [action for action in whole_parser()._actions if action.dest == "verb"]
    assert set(verbs.choices) == set(VERBS)
    assert "--push-to-hub" in verbs.choices["export"]._option_string_actions
    assert {"--config", "--resume", "--ema"} <= set(verbs.choices["train"]._option_string_actions)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["bash"]) == 2
    assert "pip install 'castvision[completion]'" in capsys.readouterr().err


def test_bash_completes_verbs_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["bash"]) == 0
    script = capsys.readouterr().out
    asked = {"castvision ex": "export", "castvision export --fo": "--format", "castvision data sh": "show"}
    for line, expected in asked.items():
        words = line.split()
        typed = " ".join(f"'{word}'" for word in words)
        ask = (
            f"{script}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
            "_shtab_castvision; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False)
        assert expected in done.stdout.split(), (line, done)
