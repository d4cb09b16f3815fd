"""A configuration names classes; which ones may be imported and run is not the configuration's to say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from castvision.training.class_paths import check_optimizer
from castvision_cli import show_data
from castvision_cli import train as cli

STRANGER = """
from pathlib import Path
from torch.optim import SGD
Path(__file__).with_name("imported").touch()
class Own(SGD):
    pass
def run(*unused, **arguments):
    Path(__file__).with_name("run").touch()
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """A module that leaves a file where it is imported, and another where its function is called."""
    (tmp_path / "stranger_module.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("stranger_module", None)


def refused(config, capsys, *flags: str) -> str:
    assert cli.main(["--config", str(config), *flags]) == 2
    told = capsys.readouterr().err.strip()
    assert told.count("\n") == 0
    return told


SLOTS = {
    "optimizer": ("model", "init_args", "optimizer"),
    "model": ("model",),
    "data": ("data",),
    "callback": ("trainer", "callbacks", 0),
    "logger": ("trainer", "logger"),
    "plugins": ("trainer", "plugins", 0),
    "profiler": ("trainer", "profiler"),
    "strategy": ("trainer", "strategy"),
    "accelerator": ("trainer", "accelerator"),
}


@pytest.mark.parametrize("slot", SLOTS)
@pytest.mark.parametrize("short", [False, True])
def test_no_slot_imports_a_stranger(slot, short, write_config, stranger, tmp_path, capsys) -> None:
    path = Path(write_config())
    config = yaml.safe_load(path.read_text())
    *way, last = SLOTS[slot]
    at = config
    for key in way:
        at = at.setdefault(key, [None] if key in ("callbacks", "plugins") else {})
    at[last] = "stranger_module.run" if short else {"class_path": "stranger_module.run", "init_args": {}}
    path.write_text(yaml.safe_dump(config))
    told = refused(path, capsys, "--run_dir", str(tmp_path / "run"))
    assert not (tmp_path / "imported").exists() and not (tmp_path / "run").exists()
    assert "stranger_module.run" in told or "`profiler`" in told  # a name Lightning does not know is not imported


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.exec", "torch.hub.load"])
def test_an_optimizer_that_would_run_a_command_is_refused(path, write_config, tmp_path, capsys) -> None:
    evil = {"class_path": path, "init_args": {"command": f"touch {tmp_path / 'run'}"}}
    told = refused(write_config(optimizer=evil), capsys, "--run_dir", str(tmp_path / "never"))
    assert f"names {path}, which is not among" in told and "--allow-class" in told
    assert not (tmp_path / "run").exists() and not (tmp_path / "never").exists()


def test_an_optimizer_must_be_one(write_config, tmp_path, capsys) -> None:
    """Also where it may be imported, and where a flag allows its package."""
    told = refused(
        write_config(optimizer={"class_path": "torch.nn.Linear", "init_args": {"out_features": 1}}), capsys,
        "--run_dir", str(tmp_path / "never"),
    )  # fmt: skip
    assert "Optimizer" in told and "torch.nn.Linear" in told
    with pytest.raises(ValueError, match=r"subclass of torch.optim.Optimizer as optimizer, got 'os.system'"):
        check_optimizer({"class_path": "os.system"})


def test_a_flag_allows_a_package(write_config, stranger, tmp_path) -> None:
    path = write_config(optimizer={"class_path": "stranger_module.Own", "init_args": {"lr": 0.1}})
    flags = ["--config", str(path), "--run_dir", str(tmp_path / "run"), "--trainer.fast_dev_run", "1"]
    assert cli.main([*flags, "--allow-class", "stranger_module"]) == 0


def test_a_flag_needs_a_prefix(write_config, capsys) -> None:
    assert "expected --allow-class PREFIX" in refused(write_config(), capsys, "--allow-class", "my package")


def test_data_show_is_held_to_the_same(write_config, tmp_path, capsys) -> None:
    path = Path(write_config())
    config = yaml.safe_load(path.read_text())
    config["data"] = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(tmp_path / "run")]}}
    path.write_text(yaml.safe_dump(config))
    assert show_data.main(["--config", str(path), "--output", str(tmp_path / "out.png")]) == 2
    assert "add --allow-class subprocess" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
