#!/usr/bin/env python
"""Put a run's best checkpoint into the package: `python tools/ship_weights.py runs/quickstart pathfinder32_join`.

Weights and facts go to castvision/weights/NAME.safetensors; the figures of the run's best round with them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # works without an installation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run's folder")
    parser.add_argument("name", help="of the shipped model")
    arguments = parser.parse_args()
    from castvision.checkpoint_facts import CHECKPOINT_KEY
    from castvision.models import checkpoint_file
    from castvision.models.checkpoint import task_weights
    from castvision.models.shipped import FOLDER

    try:
        content = checkpoint_file.read(arguments.run / "best.ckpt")
        metrics = json.loads((arguments.run / "metrics.json").read_text(encoding="utf-8"))
        facts = {CHECKPOINT_KEY: content[CHECKPOINT_KEY], "metrics": metrics["best"]}
        FOLDER.mkdir(exist_ok=True)
        target = FOLDER / f"{arguments.name}.safetensors"
        checkpoint_file.write_safetensors(task_weights(content["state_dict"]), facts, target)
    except (ValueError, OSError, KeyError) as error:
        print(f"ship_weights.py: {error}", file=sys.stderr)
        return 1
    print(f"{target}: {target.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
