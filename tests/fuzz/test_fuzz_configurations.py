"""Mutated configurations: built, or refused in one line; never a crash, a hang or a traceback."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.fuzz.configurations import make, wrong_with

NUMBERS = 1000
_SILENT = 600
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the command is run with Unix's timers and limits")


@pytest.mark.filterwarnings("ignore")  # what libraries say of odd settings
@pytest.mark.parametrize("number", [0, 1, 2, 316, 326])
def test_a_few(tmp_path, number):
    assert wrong_with(make(number), tmp_path) is None


def test_mutations_depend_on_nothing_but_their_number():
    once = [make(number) for number in range(200)]
    assert [make(number) for number in range(200)] == once


def test_what_takes_too_long_is_told_where_output_is_caught():
    """As every configuration and every command is run."""
    for module in ("doors", "configurations"):
        hang = (
            f"import contextlib, io, os, signal\nfrom tests.fuzz import {module} as door\n"
            "door._running = 'seven'\nsignal.signal(signal.SIGUSR1, door._stop)\n"
            "with contextlib.redirect_stdout(io.StringIO()):\n    os.kill(os.getpid(), signal.SIGUSR1)"
        )
        done = subprocess.run([sys.executable, "-c", hang], capture_output=True, text=True, check=True)
        assert done.stdout == "! seven: longer than 10 s\n"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", range(0, NUMBERS, 100))
def test_a_thousand(tmp_path, first):
    words = [sys.executable, "-m", "tests.fuzz.configurations", str(tmp_path), str(first), str(first + 100)]
    where = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=where, timeout=_SILENT, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr[-2000:]
    assert [line for line in lines if line.startswith("!")] == []
    assert sum(line.isdecimal() for line in lines) == 100
