#!/usr/bin/env python
"""Time ``castvision predict`` in one process and on Dask with one and two workers, a core each, and compare the files.

    python tools/measure_cluster.py --images 200 --size 1024 --output benchmarks/results/cluster_many.json
    python tools/measure_cluster.py --images 1 --size 20000 --output benchmarks/results/cluster_large.json

The model is a segmenter with random weights; every command has one thread for each worker, so that two workers are two
cores. Needs the extra ``cluster``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # works without an installation

WAYS = {"one process": [], "one worker": ["--cluster", "local:1"], "two workers": ["--cluster", "local:2"]}
TILE = 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200, help="how many (default: %(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="their sides in pixels (default: %(default)s)")
    parser.add_argument("--model-name", default="cast_vit_tiny_patch16_224", help="a backbone (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=2, help="its blocks (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", arguments.images, arguments.size)
        write_model(folder / "best.ckpt", arguments.model_name, arguments.depth)
        seconds, files = {}, {}
        for way, words in WAYS.items():
            output = folder / way
            seconds[way] = round(predict(folder, output, words), 1)
            files[way] = digest(output)
            print(f"{way}: {seconds[way]} s", flush=True)
    result = {
        "images": arguments.images, "size": arguments.size, "model": arguments.model_name, "depth": arguments.depth,
        "tile": TILE, "seconds": seconds, "two_over_one": round(seconds["one worker"] / seconds["two workers"], 2),
        "same_masks": len(set(files.values())) == 1, "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(), "load": [round(load, 1) for load in os.getloadavg()],
    }  # fmt: skip
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(f"{json.dumps(result, indent=1)}\n", encoding="utf-8")
    print(json.dumps(result))
    return 0 if result["same_masks"] else 1


def write_images(folder: Path, number: int, size: int) -> None:
    """Grey blobs of several sizes, tiled TIFFs."""
    import numpy as np
    import tifffile

    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        coarse = rng.integers(0, 256, (size // 50 + 1, size // 50 + 1, 3), dtype=np.uint8)
        image = np.kron(coarse, np.ones((50, 50, 1), np.uint8))[:size, :size]
        image ^= rng.integers(0, 32, image.shape, dtype=np.uint8)
        tifffile.imwrite(folder / f"{index:04}.tif", image, tile=(256, 256), photometric="rgb")


def write_model(path: Path, name: str, depth: int) -> None:
    """A checkpoint with random weights."""
    import torch

    from castvision.models.segmenter import create_segmenter
    from tests.inference.prediction_cases import save

    torch.manual_seed(0)
    kwargs = {"depth": depth, "in_chans": 3}
    model = create_segmenter(name, 3, head="LinearHead", model_kwargs=kwargs)
    torch.nn.init.normal_(model.head.classifier.weight)  # so that all classes are there
    save(path, model, model_name=name, model_kwargs=kwargs, img_size=[224, 224])


def predict(folder: Path, output: Path, words: list[str]) -> float:
    """Seconds of the command, its start included."""
    command = [
        sys.executable, "-c", "import sys; from castvision_cli import main; sys.exit(main())", "predict",
        str(folder / "images"), "--model", str(folder / "best.ckpt"), "--output", str(output), "--tile", str(TILE),
        "--no-overlay", *words,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def digest(output: Path) -> str:
    """Of all masks."""
    found = hashlib.sha256()
    for path in sorted((output / "masks").iterdir()):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
