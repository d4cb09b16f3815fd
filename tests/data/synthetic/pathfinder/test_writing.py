"""A set is written whole, taken up after a kill, the same with any number of processes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from castvision.data.synthetic.pathfinder import PathfinderSpec
from castvision.data.synthetic.pathfinder.writing import write_pathfinder

SPEC = PathfinderSpec.lra(32, 6)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("castvision.data.synthetic.pathfinder.writing.BATCH", 20)
    write_pathfinder(tmp_path / "set", SPEC, 50)
    return tmp_path / "set"


def digest(folder: Path) -> str:
    files = sorted(f for f in folder.rglob("*") if f.suffix in (".png", ".npy", ".json"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()


def test_resumes_what_is_missing_and_refuses_the_rest(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = digest(written)
    with pytest.raises(FileExistsError, match="complete"):
        write_pathfinder(written, SPEC, 50)
    with pytest.raises(ValueError, match="other parameters"):
        write_pathfinder(written, SPEC, 50, seed=1)
    (written / "metadata" / "1.npy").unlink()  # as after a kill: images there, metadata not
    (written / "imgs" / "1" / "sample_4.png").write_bytes(b"half")
    counts = []
    write_pathfinder(written, SPEC, 50, on_written=counts.append)
    assert counts == [30, 20]
    assert digest(written) == complete


def test_a_killed_run_is_taken_up_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("castvision.data.synthetic.pathfinder.writing.BATCH", 500)
    interrupted = tmp_path / "interrupted"
    module = "castvision.data.synthetic.pathfinder.writing"
    code = f"import {module} as m\nspec = m.PathfinderSpec.lra(32, 6)\nm.BATCH = 500\n"
    code += f"m.write_pathfinder(m.Path({str(interrupted)!r}), spec, 4000)"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        while not (interrupted / "metadata" / "1.npy").exists() and process.poll() is None:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert 2 <= len(list((interrupted / "metadata").glob("*.npy"))) < 8
    write_pathfinder(interrupted, SPEC, 4000)
    write_pathfinder(tmp_path / "whole", SPEC, 4000)
    assert digest(interrupted) == digest(tmp_path / "whole")
    assert not list(interrupted.rglob(".*"))


def test_number_of_processes_changes_nothing(written: Path, tmp_path: Path) -> None:
    write_pathfinder(tmp_path / "parallel", SPEC, 50, workers=2)
    assert digest(tmp_path / "parallel") == digest(written)
