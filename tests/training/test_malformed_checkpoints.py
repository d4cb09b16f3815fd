"""Checkpoints whose weights fit and whose state of training is none: refused in one line, not by a traceback."""

from __future__ import annotations

import pytest
import torch

from castvision_cli import train as cli
from tests.training.test_resume import configuration

FLAGS = ("--trainer.enable_progress_bar", "false")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of an epoch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("castvision.training.callbacks.report.save_report", lambda *_: None)
        folder = tmp_path_factory.mktemp("whole")
        config = configuration(folder)
        assert (
            cli.main(["--config", str(config), "--run_dir", str(folder / "run"), *FLAGS, "--trainer.max_epochs", "1"])
            == 0
        )
        yield config, torch.load(folder / "run/last.ckpt", weights_only=True)


def first_callback(content):
    return next(key for key in content["callbacks"] if key.startswith("ModelCheckpoint"))


CHANGES = {
    "loops a number": lambda c: c.update(loops=5),
    "loops a list": lambda c: c.update(loops=[]),
    "a loop a number": lambda c: c.update(loops={"fit_loop": 3}),
    "a counter a text": lambda c: c["loops"]["fit_loop"].update({"epoch_progress": "x"}),
    "callbacks a list": lambda c: c.update(callbacks=[1]),
    "callbacks a number": lambda c: c.update(callbacks=7),
    "a callback's state a number": lambda c: c["callbacks"].update({first_callback(c): 5}),
    "a callback's state empty": lambda c: c["callbacks"].update({first_callback(c): {"dirpath": 3}}),
    "optimisers a text": lambda c: c.update(optimizer_states="x"),
    "an optimiser without groups": lambda c: c.update(optimizer_states=[{"state": {}}]),
    "no optimiser": lambda c: c.pop("optimizer_states"),
    "schedules a number": lambda c: c.update(lr_schedulers=[4]),
    "steps a text": lambda c: c.update(global_step="many"),
    "epoch a list": lambda c: c.update(epoch=[1]),
    "a data module's state a number": lambda c: c.update(ShuffledNoiseDataModule=3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_line(run, tmp_path, capsys, change):
    config, content = run
    content = {**content, "callbacks": dict(content["callbacks"]), "loops": dict(content["loops"])}
    content["loops"]["fit_loop"] = dict(content["loops"]["fit_loop"])
    CHANGES[change](content)
    torch.save(content, tmp_path / "bad.ckpt")
    flags = ["--ckpt_path", str(tmp_path / "bad.ckpt"), "--trainer.max_epochs", "2", *FLAGS]
    code = cli.main(["--config", str(config), "--run_dir", str(tmp_path / "run"), *flags])
    before = ("taken from", "trains ", "data: ", "batches of", "results go to")  # what the run is going to do
    told = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(before)]
    assert code in (1, 2) and len(told) == 1 and "bad.ckpt" in told[0]
