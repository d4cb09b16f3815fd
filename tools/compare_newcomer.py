#!/usr/bin/env python
"""Compare a first `castvision train` with a plain script, on two hundred images of every kind of data.

Small data sets are made in a temporary folder. On each, the shipped configuration is trained by its command, given
only the data, the number of steps and a small model; then `benchmarks/newcomer/plain.py`, which has the same backbone,
images, steps and batch size, AdamW, a half cosine and nothing else. Runs that stand in the output are not done again;
the table is printed from it. With --table nothing is run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # works without an installation

OUTPUT = ROOT / "benchmarks/results/newcomer.json"
MODEL = "cast_vit_atto_patch4_32"
LEARNING_RATE = "1e-3"


def run(command, **how):
    """A command's output.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, **how)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed: {done.stderr.strip()[-800:]}")
    return done.stdout


def castvision(kind, folder, seed, steps):
    """The figures of the shipped configuration, trained as a user does."""
    from benchmarks.newcomer.kinds import SIDE

    place = folder / f"run{seed}"
    command = [sys.executable, "-m", "castvision", "train", "--config", kind.config, "--data.root", folder / "data"]
    command += ["--run_dir", place, "--seed_everything", str(seed), "--trainer.max_steps", str(steps)]
    command += ["--model.model_name", MODEL, kind.size_flag, str(SIDE), "--trainer.accelerator", "cpu"]
    run([str(word) for word in command])
    metrics = json.loads((place / "metrics.json").read_text())
    key, training = f"val/{kind.metric}", metrics["training"]
    newest = metrics["last"].get(f"val/newest_{kind.metric}")
    return {
        "castvision": metrics["last"][key], "best": metrics["best"][key], "newest": newest, "steps": training["steps"],
        "batch_size": training["images"] // training["steps"], "seconds": training["seconds"],
    }  # fmt: skip


def plain(folder, batch_size, seed, steps):
    """The plain script's figure."""
    script = [sys.executable, str(ROOT / "benchmarks/newcomer/plain.py"), str(folder / "arrays.npz"), MODEL]
    return json.loads(run([*script, *map(str, (steps, batch_size, seed)), LEARNING_RATE]).splitlines()[-1])


def table(results):
    """The table of a file of results, as it stands in docs/results.md."""
    lines = ["| data | configuration | metric | plain script | `castvision train` |", "|---|---|---|---|---|"]
    for name, entry in results["kinds"].items():
        runs = [each for each in entry["runs"].values() if {"plain", "castvision"} <= each.keys()]
        if not runs:
            continue
        plain, ours = (", ".join(f"{each[key]:.3f}" for each in runs) for key in ("plain", "castvision"))
        lines.append(f"| {name} | `{entry['config']}` | {entry['metric']} | {plain} | {ours} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"(default: {OUTPUT.relative_to(ROOT)})")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(default: 0 1)")
    parser.add_argument("--steps", type=int, default=100, help="(default: 100)")
    parser.add_argument("--kinds", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument("--table", action="store_true", help="only print the table of the output")
    arguments = parser.parse_args()
    results = json.loads(arguments.output.read_text()) if arguments.output.is_file() else {}
    results = results or {"model": MODEL, "steps": arguments.steps, "lr_of_plain": float(LEARNING_RATE), "kinds": {}}
    if results["steps"] != arguments.steps:
        print(f"compare_newcomer.py: expected --steps {results['steps']} as in {arguments.output}", file=sys.stderr)
        return 1
    if not arguments.table:
        from benchmarks.newcomer.kinds import KINDS, write

        for name in arguments.kinds or KINDS:
            if name not in KINDS:
                print(f"compare_newcomer.py: expected kinds of {', '.join(KINDS)}, got {name!r}", file=sys.stderr)
                return 1
            kind, entry = KINDS[name], results["kinds"].get(name, {"runs": {}})
            entry |= {"config": kind.config, "metric": kind.metric}
            with tempfile.TemporaryDirectory() as folder:
                write(kind, Path(folder))
                for seed in arguments.seeds:
                    found = entry["runs"].setdefault(str(seed), {})
                    if "castvision" not in found:
                        found |= castvision(kind, Path(folder), seed, arguments.steps)
                    if "plain" not in found:
                        found["plain"] = plain(Path(folder), found["batch_size"], seed, arguments.steps)
                    print(f"{name}, seed {seed}: {found}", file=sys.stderr, flush=True)
                    results["kinds"][name] = entry
                    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
