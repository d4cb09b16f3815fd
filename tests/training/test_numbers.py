"""Numbers that go wrong stop a run in one line; numbers that cannot be meant are refused before it."""

from __future__ import annotations

import pytest
import torch

from castvision_cli import train as cli

ADAM = "torch.optim.AdamW"


def run(config, folder, capsys, *flags: str) -> tuple[int, str]:
    code = cli.main(["--config", str(config), "--run_dir", str(folder), "--trainer.enable_progress_bar=false", *flags])
    return code, (capsys.readouterr().err.strip().splitlines() or [""])[-1]


def test_a_loss_that_is_not_finite_ends_the_run(write_config, tmp_path, capsys) -> None:
    config = write_config(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}})
    code, told = run(config, tmp_path / "run", capsys)
    assert code == 1
    assert told.startswith("castvision train: the loss of step") and "lower optimizer.lr (now" in told
    assert not (tmp_path / "run/metrics.json").exists() and not (tmp_path / "run/last.ckpt").exists()
    image, _ = torch.load(tmp_path / "run/nonfinite_batch.pt", weights_only=True)[:2]
    assert image.shape[1:] == (1, 16, 16)


def test_weights_that_are_not_finite_are_not_counted_with(write_config, tmp_path, capsys) -> None:
    """The last step of an epoch may spoil them after the last loss was looked at."""
    config = write_config(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 1e30}})
    code, told = run(config, tmp_path / "run", capsys, "--trainer.limit_train_batches=1")
    assert code == 1 and ("the weights are not finite after step" in told or "the loss of step" in told)


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("--model.optimizer.lr=.inf", "expected a finite model.optimizer.lr >= 0, got inf"),
        ("--model.optimizer.lr=.nan", "expected model.optimizer.lr >= 0, got nan"),
        ("--model.weight_decay=.nan", "expected model.weight_decay >= 0, got nan"),
        ("--trainer.gradient_clip_val=-1", "expected trainer.gradient_clip_val >= 0, got -1"),
        ("--trainer.gradient_clip_val=.nan", "expected trainer.gradient_clip_val >= 0, got nan"),
        ("--trainer.val_check_interval=0", "expected trainer.val_check_interval > 0, got 0"),
        ("--trainer.max_time=00:00:00:00", "expected trainer.max_time as DD:HH:MM:SS, above zero"),
        ("--early_stopping=-1", "expected early_stopping >= 1, got -1"),
        ("--ema=1", "expected 0 < ema < 1"),
        ("--model.loss={}", "expected a factor > 0 for some of"),
        ("--trainer.accelerator=tpu", "TPU|torch_xla"),
    ],
)
def test_settings_that_cannot_be_meant(flag, told, write_config, tmp_path, capsys) -> None:
    config = write_config(optimizer={"class_path": ADAM, "init_args": {"lr": 0.01}})
    code = cli.main(["--config", str(config), "--run_dir", str(tmp_path / "run"), flag])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code in (1, 2) and lines[-1].startswith("castvision train: ")
    assert any(part in lines[-1] for part in told.split("|")), lines[-1]
    assert not (tmp_path / "run/metrics.json").exists()


@pytest.mark.filterwarnings("ignore:.*fp16 is not supported on CPU:UserWarning")  # and takes bf16 instead
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "16-mixed"])
def test_precisions(precision, fused, write_config, tmp_path, capsys) -> None:
    """With a fused optimiser and clipped gradients, as many shipped configurations have."""
    config = write_config(optimizer={"class_path": ADAM, "init_args": {"lr": 0.01, "fused": fused}})
    flags = [f"--trainer.precision={precision}", "--trainer.gradient_clip_val=1.0", "--trainer.fast_dev_run=2"]
    code, told = run(config, tmp_path / "run", capsys, *flags)
    assert code == 0, told


def test_a_fused_optimizer_is_clipped_under_bf16(write_config, tmp_path, capsys) -> None:
    """So hard that nothing moves."""
    config = write_config(optimizer={"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "fused": True}})
    flags = ["--trainer.precision=bf16-mixed", "--trainer.max_epochs=1"]
    weights = []
    for clip in ("1e-12", "1.0"):
        assert run(config, tmp_path / clip, capsys, *flags, f"--trainer.gradient_clip_val={clip}")[0] == 0
        weights.append(torch.load(tmp_path / clip / "last.ckpt", weights_only=True)["state_dict"])
    moved = [abs(weights[0][name] - weights[1][name]).max() for name in weights[0] if "weight" in name]
    assert max(moved) > 1e-4
