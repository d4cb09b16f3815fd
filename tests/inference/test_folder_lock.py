from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

import castvision_cli
from castvision.inference.files import OutputFolder
from castvision.inference.folder_lock import lock_of

pytest.importorskip("fcntl")

_HOLD = """
import fcntl, os, sys
fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder, until it is closed."""
    folder = tmp_path / "out"
    folder.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        yield folder, process


def test_another_process_is_refused_until_the_first_ends(holder):
    folder, process = holder
    with pytest.raises(BlockingIOError, match=r"another run writes into '.*out'; wait for its end"):
        OutputFolder(folder, overwrite=True)
    process.communicate()
    OutputFolder(folder, overwrite=True).write("a.txt", b"a")


def test_a_worker_writes_into_the_folder_of_the_process_that_handed_its_work_out(holder):
    folder, _ = holder
    assert OutputFolder(folder, overwrite=True, is_lent=True).write("a.txt", b"a").read_bytes() == b"a"
    with pytest.raises(BlockingIOError):  # and takes no lock by it
        lock_of(folder)


def test_a_folder_that_is_made_later_is_refused_at_the_first_file(tmp_path):
    output = OutputFolder(tmp_path / "out")
    (tmp_path / "out").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, tmp_path / "out"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError, match="another run writes into"):
            output.write("a.txt", b"a")
        process.communicate()
    output.write("a.txt", b"a")


def test_parts_of_one_process_share_a_folder_and_give_it_back(tmp_path):
    first, second = lock_of(tmp_path), lock_of(tmp_path / ".")
    assert first is second
    one = OutputFolder(tmp_path)
    one.write("a", b"")
    OutputFolder(tmp_path, overwrite=True).write("b", b"")
    del one, first, second
    assert (
        subprocess.run([sys.executable, "-c", _HOLD, tmp_path], stdin=subprocess.DEVNULL, check=False).returncode == 0
    )


def test_a_verb_gives_its_folder_back_whoever_keeps_its_variables(tmp_path, monkeypatch):
    kept = [OutputFolder(tmp_path / "own")]
    kept[0].write("a", b"")

    def write(arguments):
        kept.append(OutputFolder(tmp_path / "out"))
        kept[-1].write("a", b"")
        raise RuntimeError

    def is_free(folder):
        done = subprocess.run([sys.executable, "-c", _HOLD, tmp_path / folder], stdin=subprocess.DEVNULL, check=False,
                              stderr=subprocess.DEVNULL)  # fmt: skip
        return done.returncode == 0

    monkeypatch.setitem(sys.modules, "castvision_cli.writing", SimpleNamespace(main=write))
    monkeypatch.setitem(castvision_cli.VERBS, "writing", "writing")
    with pytest.raises(RuntimeError):
        castvision_cli.main(["writing"])
    assert is_free("out") and not is_free("own")  # what the caller has stays his
    OutputFolder(tmp_path / "out", overwrite=True).write("b", b"")  # and the process may take it again
