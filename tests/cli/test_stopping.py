"""SIGTERM and Ctrl-C end a command in one line."""

from __future__ import annotations

import os
import signal
import threading

import pytest

import castvision_cli as cli
from castvision_cli.stopping import Terminated, terminable


def raising(number):
    def run(arguments):
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 1)  # until the handler has run
        raise AssertionError("not ended")

    return run


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
@pytest.mark.parametrize("verb", ["predict", "evaluate", "embed", "demo", "benchmark"])
def test_a_signal_ends_a_command_in_one_line(monkeypatch, capsys, verb, number, code, word):
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have been told to ignore it
    monkeypatch.setattr(f"castvision_cli.{cli.VERBS[verb]}.main", raising(number))
    assert cli.main([verb]) == code
    assert capsys.readouterr().err == f"castvision {verb}: {word}; nothing more is written\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_no_image_survives_it():
    """What one image's failure is taken for must not catch it."""
    assert not issubclass(Terminated, Exception)


def test_other_threads_leave_signals_alone():
    seen = []

    def run():
        with terminable():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
