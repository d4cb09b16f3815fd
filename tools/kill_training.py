"""Kill training runs without notice, again and again, and see what is lost: `python tools/kill_training.py --kills 50`.

A small run is killed (SIGKILL) at random times and resumed each time. After each kill, the checkpoint must be whole and
at most one interval older than the newest row of the log; when the run is finished, its weights and its log must be
those of a run that nobody killed, bit for bit. Where one finishes before all kills are done, the next starts.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

INTERVAL = 10
"""Steps between two rounds of held-out images, and so between two checkpoints."""
EPOCHS = 6
CONFIGURATION = {
    "model": {
        "class_path": "SegmentationTask",
        "init_args": {
            "model_name": "vit_tiny_patch16_224",
            "num_classes": 2,
            "model_kwargs": {
                "embed_dim": 32,
                "depth": 2,
                "num_heads": 2,
                "patch_size": 4,
                "img_size": 32,
                "in_chans": 1,
            },
        },
    },
    "data": {
        "class_path": "MazeDataModule",
        "init_args": {"img_size": 32, "train_length": 80, "val_length": 8, "test_length": 8, "batch_size": 4},
    },
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "val_check_interval": INTERVAL,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    },
}


def start(config: Path, folder: Path) -> int:
    """A training process, forked from this one; its messages go nowhere, its log to the disk after every step.

    Returns:
        Its id.
    """
    from castvision_cli import train

    child = os.fork()
    if child:
        return child
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    resume = ["--resume"] if any(folder.glob("*.ckpt")) else []
    logger = f"{{class_path: CSVLogger, init_args: {{save_dir: {folder}, name: logs, flush_logs_every_n_steps: 1}}}}"
    code = 99
    try:
        code = train.main(
            ["--config", str(config), "--run_dir", str(folder), "--ema", "0.99", "--trainer.logger", logger, *resume]
        )
    finally:
        os._exit(code)


def finish(config: Path, folder: Path) -> None:
    """Train to the end.

    Raises:
        RuntimeError: It fails.
    """
    code = os.waitstatus_to_exitcode(os.waitpid(start(config, folder), 0)[1])
    if code:
        raise RuntimeError(f"training in {folder} ended with {code}")


def rows(folder: Path) -> list[dict[str, str]]:
    """What a run has logged."""
    from castvision.run_folder import log_parts

    found = [row for part in log_parts(folder) for row in csv.DictReader(part.read_text().splitlines())]
    return [{name: value for name, value in row.items() if value} for row in found]


def lost(folder: Path) -> int:
    """Steps in a run's log that its newest checkpoint does not have.

    Raises:
        ValueError: The checkpoint is damaged.
    """
    from castvision.models import checkpoint_file

    last = folder / "last.ckpt"
    saved = checkpoint_file.read(last)["global_step"] if last.exists() else 0
    return max([int(row["step"]) + 1 for row in rows(folder) if "step" in row], default=0) - saved


def is_same(first: Path, second: Path) -> bool:
    """Whether two runs ended with the same weights, averages, optimiser and log."""
    import torch

    from castvision.models import checkpoint_file

    one, other = (checkpoint_file.read(folder / "last.ckpt") for folder in (first, second))
    equal = [
        torch.equal(one[key][name], other[key][name])
        for key in ("state_dict", "current_model_state")
        for name in one[key]
    ]
    moments = [[state for each in run["optimizer_states"] for state in each["state"].values()] for run in (one, other)]
    equal += [torch.equal(a[name], b[name]) for a, b in zip(*moments, strict=True) for name in a]
    return all(equal) and rows(first) == rows(second)


def main(argv: list[str] | None = None) -> int:
    """See the module's text; 0 if nothing more than one interval was lost, and the runs ended alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=2.0, help="the longest it trains (default: 2)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    # NOTE: imported here and above, so that --help answers at once.
    import yaml

    chance = random.Random(arguments.seed)
    import_module("castvision.training.cli")  # once; every run is a fork
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        config = root / "small.yaml"
        config.write_text(yaml.safe_dump(CONFIGURATION))
        finish(config, root / "whole")
        losses: list[int] = []
        runs = [root / "run0"]
        while len(losses) < arguments.kills:
            before = len(rows(runs[-1])) if runs[-1].exists() else 0
            child = start(config, runs[-1])
            # so that it dies while it trains, not while it starts
            while runs[-1].exists() is False or len(rows(runs[-1])) <= before:
                if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    break
                time.sleep(0.05)
            time.sleep(chance.uniform(0, arguments.seconds))
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == -signal.SIGKILL and not (runs[-1] / "metrics.json").exists():
                losses.append(lost(runs[-1]))
            elif status in (0, -signal.SIGKILL):
                runs.append(root / f"run{len(runs)}")
            else:
                raise RuntimeError(f"training in {runs[-1]} ended with {status}")
        if runs[-1].exists():
            finish(config, runs[-1])
        alike = [is_same(root / "whole", run) for run in runs if run.exists()]
    sys.stdout.write(
        f"{len(losses)} kills in {len(alike)} runs of {EPOCHS * 20} steps; steps lost: {losses}, at most {max(losses)} "
        f"of an interval of {INTERVAL}; ended like an uninterrupted run: {sum(alike)} of {len(alike)}\n"
    )
    return 0 if max(losses) <= INTERVAL and all(alike) else 1


if __name__ == "__main__":
    sys.exit(main())
