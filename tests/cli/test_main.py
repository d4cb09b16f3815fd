from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import castvision
import castvision_cli as cli

ROOT = Path(castvision.__file__).parent

ALONE = """
import sys
from castvision_cli import main
for arguments in (["--help"], ["train", "--help"], ["timm", "--help"], ["data", "--help"], ["--version"]):
    assert main(arguments) == 0
heavy = {"castvision", "torch", "timm", "lightning", "jsonargparse", "numpy", "matplotlib", "rich"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_imports_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "castvision train --config quickstart" in done.stdout
    assert "quickstart_no_attention" in done.stdout


def test_verbs_and_help_agree(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in cli.VERBS)


@pytest.mark.parametrize("arguments", [[], ["train"], ["timm"]])
def test_nothing_to_do_shows_help_and_fails(arguments, capsys):
    assert cli.main(arguments) == 2
    assert "usage: castvision" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"castvision {castvision.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown verb 'trian'; expected one of train"),
        (["trian"], "; did you mean train?"),
        (["qqq"], "convert, benchmark, timm, completion\n"),
        (["timm", "missing.py"], "no such script: 'missing.py'"),
        (["train", "--config", "qickstart"], "did you mean quickstart?"),
    ],
)
def test_errors_are_one_line(arguments, message, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_timm_scripts_see_our_models_and_their_own_folder(tmp_path, capsys):
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    script = tmp_path / "validate.py"
    script.write_text("import sys, timm, beside\nprint(timm.is_model(sys.argv[2]), beside.VALUE, __name__)\n")
    before = list(sys.argv), list(sys.path)
    assert cli.main(["timm", str(script), "--model", "cast_vit_atto_patch4_32"]) == 0
    assert capsys.readouterr().out == "True 7 __main__\n"
    assert (sys.argv, sys.path) == before
    sys.modules.pop("beside")


def test_module_and_tool_are_the_same_command():
    done = subprocess.run([sys.executable, "-m", "castvision", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("castvision ")
    tool = ROOT.parent / "tools" / "train.py"
    done = subprocess.run([sys.executable, str(tool), "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: castvision train")


def test_a_reader_that_has_enough_is_no_error():
    """``castvision completion bash | head -1``."""
    words = [sys.executable, "-c", "import sys; from castvision_cli import main; sys.exit(main())", "--help"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        told = process.stderr.read().decode()
        assert process.wait() == 141
    assert told == ""
