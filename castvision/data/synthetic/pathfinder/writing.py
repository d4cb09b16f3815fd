"""Writes a Pathfinder data set in Long Range Arena's layout, with masks, in parallel, resumable.

    FOLDER/imgs/<batch>/sample_<i>.png     8-bit grey
    FOLDER/metadata/<batch>.npy            text, one image a line, LRA's eleven columns
    FOLDER/masks/<batch>.npz               semantic, instances, gap_free, ordinal, dots; one row an image
    FOLDER/manifest.json                   all parameters

A batch of 1,000 images is complete once its metadata exists: that file is written last, under its final name at once.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from castvision.data.synthetic.compiled import SPLITS, check_stream
from castvision.data.synthetic.pathfinder import masks
from castvision.data.synthetic.pathfinder.engine import make_batch
from castvision.data.synthetic.pathfinder.spec import PathfinderSpec
from castvision.files import draft

BATCH = 1000
"""Images in a folder."""


class _Job(NamedTuple):
    folder: Path
    spec: PathfinderSpec
    seed: int
    batch: int
    indices: range


def write_pathfinder(
    folder: Path,
    spec: PathfinderSpec,
    num_images: int,
    seed: int = 0,
    workers: int = 1,
    on_written: Callable[[int], object] | None = None,
) -> None:
    """Write the set, or what is missing of it after an interruption.

    Args:
        folder: New, empty, or one to go on with; made if missing.
        spec: What to draw, for example ``PathfinderSpec.lra(32)``.
        num_images: How many.
        seed: Of the set.
        workers: Processes.
        on_written: Called with a number of images: first those that an earlier run completed, then those of each batch.

    Raises:
        ValueError: A parameter out of range, or a set of other parameters there.
        FileExistsError: A complete set, or a folder with files of someone else's.
    """
    check_stream(seed, "written")
    if num_images < 1 or workers < 1:
        raise ValueError(f"expected num_images >= 1 and workers >= 1, got {num_images=} {workers=}")
    parameters = {"format": 1, "spec": json.loads(json.dumps(asdict(spec))), "seed": seed, "num_images": num_images}
    _claim(folder, parameters)
    jobs = [
        _Job(folder, spec, seed, batch, range(num_images)[batch * BATCH : (batch + 1) * BATCH])
        for batch in range(-(-num_images // BATCH))
        if not (folder / "metadata" / f"{batch}.npy").exists()
    ]
    if not jobs:
        raise FileExistsError(f"{folder} holds this set already, complete; choose another folder to write it again")
    report = on_written or (lambda count: None)
    report(num_images - sum(len(job.indices) for job in jobs))
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            report(_write_batch(job))
        return
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        for count in pool.imap_unordered(_write_batch, jobs):
            report(count)


def _claim(folder: Path, parameters: dict[str, Any]) -> None:
    """Take the folder: new, empty, or begun with the same parameters."""
    manifest = folder / "manifest.json"
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{manifest} is damaged ({error}); choose another folder") from None
        if found != parameters:
            raise ValueError(f"{folder} holds a set of other parameters (see manifest.json); choose another folder")
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty; choose a new folder")
    for name in ("imgs", "metadata", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write(manifest, json.dumps(parameters, indent=1).encode())


def _write_batch(job: _Job) -> int:
    """One folder of images, its masks, and last its metadata; returns the number of images."""
    folder, spec, seed, number, indices = job
    batch = make_batch(spec, seed, SPLITS["written"], np.array(indices))
    _write_images(folder / "imgs" / str(number), batch.images)
    path = folder / "masks" / f"{number}.npz"
    partial = path.with_name(f".{path.name}")
    np.savez_compressed(
        partial,
        allow_pickle=False,
        semantic=masks.make_semantic_masks(spec, batch),
        instances=masks.make_instance_masks(spec, batch),
        gap_free=masks.make_gap_free_masks(spec, batch),
        ordinal=masks.make_ordinal_masks(spec, batch),
        dots=batch.dots,
    )
    partial.replace(path)
    lines = [
        f"imgs/{number} sample_{i}.png {i} {batch.labels[i]} {spec.continuity} {spec.contour_length} "
        f"{spec.distractor_length} {spec.paddle_length} {spec.paddle_thickness} "
        f"{spec.paddle_margins[batch.margins[i]]} 1"
        for i in range(len(indices))
    ]
    _write(folder / "metadata" / f"{number}.npy", ("\n".join(lines) + "\n").encode())
    return len(indices)


def _write_images(folder: Path, images: NDArray[np.uint8]) -> None:
    """All images of a batch appear at once; what a killed run left is replaced."""
    partial = folder.with_name(f".{folder.name}.part")
    for left in (partial, folder):
        if left.exists():
            shutil.rmtree(left)
    partial.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(partial / f"sample_{i}.png")
    partial.replace(folder)


def _write(path: Path, content: bytes) -> None:
    with draft(path) as temporary:
        temporary.write_bytes(content)
