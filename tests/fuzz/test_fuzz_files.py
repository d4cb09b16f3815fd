"""Mutated image files through every door that reads files: an image or an error of ours, never a crash or a hang."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from castvision.models.segmenter import create_segmenter
from tests.cli.test_evaluate import ATTO, save
from tests.fuzz.doors import by_windows, findings_of
from tests.fuzz.mutations import FILES, KINDS, STORES, make, put

NUMBERS = 5000
_SILENT = 180  # seconds without a new number that make a hang, on however busy a machine
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the doors use Unix's timers and limits")


def test_what_is_mutated_is_sound(tmp_path):
    for kind in FILES:
        for data in FILES[kind]:
            by_windows(put(tmp_path, kind, data))
    if importlib.util.find_spec("zarr"):
        for store in STORES:
            by_windows(put(tmp_path, "zarr", store))


def test_mutations_depend_on_nothing_but_their_number():
    assert [make(number) for number in range(20)] == [make(number) for number in range(20)]
    assert {make(number)[0] for number in range(len(KINDS))} == set(KINDS)
    assert make(3) != make(3, seed=1)


@pytest.mark.filterwarnings("ignore")  # decoders warn of damage
def test_a_hundred_files(tmp_path):
    found = [finding for number in range(100) for finding in findings_of(number, tmp_path)]
    assert not found


def run(folder: Path, numbers: range, *more: str) -> list[str]:
    """Findings of a range of numbers, in processes of their own; the next one begins where one died."""
    found, first = [], numbers.start
    while first < numbers.stop:
        words = [sys.executable, "-m", "tests.fuzz.doors", str(folder), str(first), str(numbers.stop), *more]
        where = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            done = subprocess.run(
                words, capture_output=True, env=where, timeout=_SILENT + 2 * len(numbers), check=False
            )
            text, code = done.stdout.decode(), done.returncode
        except subprocess.TimeoutExpired as end:
            text, code = (end.stdout or b"").decode(), "a hang"
        lines = text.splitlines()
        begun = [int(line) for line in lines if line.isdecimal()]
        found += [line for line in lines if line.startswith("!")]
        last = begun[-1] if begun else first
        if code != 0:
            found.append(f"! {last}: the process ended with {code}")
        first = last + 1
    return found


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("first", range(0, NUMBERS, 250))
def test_five_thousand_files(tmp_path, first):
    assert not run(tmp_path, range(first, first + 250))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_files_through_predict_and_evaluate(tmp_path):
    model = save(tmp_path / "best.ckpt", create_segmenter(ATTO, 2, head="LinearHead", model_kwargs={"depth": 1}))
    (tmp_path / "mask").mkdir()
    Image.new("L", (80, 48)).save(tmp_path / "mask/mutated.png")
    assert not run(tmp_path, range(100_000, 100_100), str(model), str(tmp_path / "mask/mutated.png"))
