#!/usr/bin/env python
"""Train for an hour, and record the memory and the handles of the training process.

    python tools/soak_training.py --minutes 60 --output benchmarks/results/soak_training.json

Needs Linux. The run is that of a shipped configuration, watched from outside; it ends by Lightning's own clock.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from soak_demo import ROOT, look, summary

EVERY = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60, help="how long (default: 60)")
    parser.add_argument("--config", default="pathfinder_seg32", help="a shipped configuration (%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/soak_training.json")
    arguments = parser.parse_args()
    command = [
        sys.executable, "-c", "import sys; from castvision_cli import main; sys.exit(main())", "train",
        "--config", arguments.config, "--trainer.max_epochs", "100000", "--trainer.val_check_interval", "100",
        "--trainer.max_time", f"00:00:{arguments.minutes}:00" if arguments.minutes < 60 else
        f"00:{arguments.minutes // 60:02}:{arguments.minutes % 60:02}:00",
    ]  # fmt: skip
    samples = []
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder, log = Path(name), Path(name) / "log.txt"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with log.open("w") as file:
            training = subprocess.Popen(
                [*command, "--run_dir", str(folder / "run")], env=environment, stdout=file, stderr=subprocess.STDOUT
            )
        while training.poll() is None:
            with suppress(KeyError, OSError):  # it has just ended
                samples.append(look(training.pid, folder, start))
            time.sleep(EVERY)
        printed = log.read_text(encoding="utf-8", errors="replace")
        metrics = folder / "run" / "metrics.json"
        done = json.loads(metrics.read_text())["training"] if metrics.exists() else {}
    result = {
        "minutes": round((time.monotonic() - start) / 60, 1),
        "config": arguments.config,
        "exit_code": training.returncode,
        "training": done,
        "tracebacks": printed.count("Traceback"),
        **summary(samples, min(180.0, 12 * arguments.minutes)),
        "samples": samples[:: max(1, len(samples) // 120)],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=1))
    if training.returncode:
        print(printed[-3000:], file=sys.stderr)
    return int(training.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
