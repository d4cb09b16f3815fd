"""Write a Pathfinder data set in Long Range Arena's layout, with masks, in parallel, resumable.

    OUT/imgs/<batch>/sample_<i>.png     8-bit grey
    OUT/metadata/<batch>.npy            text, one image a line, LRA's eleven columns
    OUT/masks/<batch>.npz               semantic, instances, gap_free, ordinal, dots; one row an image
    OUT/manifest.json                   all parameters

A batch of 1,000 images is complete once its metadata exists: that file is written last, under its final name at once.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from castvision.data.synthetic.pathfinder.engine import Batch
    from castvision.data.synthetic.pathfinder.spec import PathfinderSpec

BATCH = 1000


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, write, report; 0 done, 1 refused or failed, 2 wrong arguments."""
    args = build_parser().parse_args(argv)
    try:
        write_pathfinder(
            args.out, img_size=args.img_size, contour_length=args.contour_length, num_images=args.num_images,
            mode=args.mode, seed=args.seed, workers=args.workers,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        sys.stderr.write(f"make-pathfinder: {error}\n")
        return 1
    sys.stdout.write(f"{args.num_images} images in {args.out}\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make-pathfinder", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; new, empty, or one to go on with")
    parser.add_argument("--img-size", type=int, default=32, help="height and width (default: 32)")
    parser.add_argument("--contour-length", type=int, default=14, help="paddles in a long path (default: 14)")
    parser.add_argument("--num-images", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--mode", choices=("lra", "clean"), default="lra", help="see PathfinderSpec (default: lra)")
    parser.add_argument("--seed", type=int, default=0, help="another seed is another set (default: 0)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    return parser


def write_pathfinder(  # noqa: PLR0913 - the parameters of a set
    out: Path,
    *,
    img_size: int = 32,
    contour_length: int = 14,
    num_images: int = 1000,
    mode: str = "lra",
    seed: int = 0,
    workers: int = 1,
) -> None:
    """Write the set, or what is missing of it after an interruption.

    Args:
        out: Folder; made if missing.
        img_size: Height and width.
        contour_length: Paddles in a long path.
        num_images: How many.
        mode: "lra" or "clean".
        seed: Of the set.
        workers: Processes.

    Raises:
        ValueError: A parameter out of range, or a set of other parameters there.
        FileExistsError: A complete set, or a folder with files of someone else's.
    """
    from castvision.data.synthetic.pathfinder import PathfinderSpec
    from castvision.data.synthetic.pathfinder.sample import check_key

    spec = PathfinderSpec.lra(img_size, contour_length, mode)  # type: ignore[arg-type] # checked there
    check_key(seed, "written")
    if num_images < 1 or workers < 1:
        raise ValueError(f"expected num_images >= 1 and workers >= 1, got {num_images=} {workers=}")
    parameters = {"format": 1, "spec": json.loads(json.dumps(asdict(spec))), "seed": seed, "num_images": num_images}
    _claim(out, parameters)
    missing = [b for b in range(-(-num_images // BATCH)) if not (out / "metadata" / f"{b}.npy").exists()]
    if not missing:
        raise FileExistsError(f"{out} holds this set already, complete; choose another folder to write it again")
    jobs = [(out, spec, seed, b, range(num_images)[b * BATCH : (b + 1) * BATCH]) for b in missing]
    _run(jobs, workers)


def _claim(out: Path, parameters: dict[str, Any]) -> None:
    """Take the folder: new, empty, or begun with the same parameters."""
    manifest = out / "manifest.json"
    if manifest.exists():
        try:
            found = json.loads(manifest.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{manifest} is damaged ({error}); choose another folder") from None
        if found != parameters:
            raise ValueError(f"{out} holds a set of other parameters (see manifest.json); choose another folder")
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; choose a new folder")
    for name in ("imgs", "metadata", "masks"):
        (out / name).mkdir(parents=True, exist_ok=True)
    _write(manifest, json.dumps(parameters, indent=1).encode())


def _run(jobs: list[tuple[Path, Any, int, int, range]], workers: int) -> None:
    import multiprocessing

    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task("images", total=sum(len(job[-1]) for job in jobs))
        if workers == 1 or len(jobs) == 1:
            for job in jobs:
                progress.advance(task, _write_batch(job))
            return
        with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            for count in pool.imap_unordered(_write_batch, jobs):
                progress.advance(task, count)


def _write_batch(job: tuple[Path, Any, int, int, range]) -> int:
    """One folder of images, its masks, and last its metadata."""
    import numpy as np

    from castvision.data.synthetic.pathfinder.engine import make_batch
    from castvision.data.synthetic.pathfinder.sample import SPLITS

    out, spec, seed, number, indices = job
    batch = make_batch(spec, seed, SPLITS["written"], np.array(indices))
    _write_images(out / "imgs" / str(number), batch.images)
    _write_masks(out / "masks" / f"{number}.npz", spec, batch)
    lines = [
        f"imgs/{number} sample_{i}.png {i} {batch.labels[i]} {spec.continuity} {spec.contour_length} "
        f"{spec.distractor_length} {spec.paddle_length} {spec.paddle_thickness} "
        f"{spec.paddle_margins[batch.margins[i]]} 1"
        for i in range(len(indices))
    ]
    _write(out / "metadata" / f"{number}.npy", ("\n".join(lines) + "\n").encode())
    return len(indices)


def _write_images(folder: Path, images: NDArray[np.uint8]) -> None:
    """All images of a batch appear at once; what a killed run left is replaced."""
    from PIL import Image

    partial = folder.with_name(f".{folder.name}.partial")
    for left in (partial, folder):
        if left.exists():
            shutil.rmtree(left)
    partial.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(partial / f"sample_{i}.png")
    partial.replace(folder)


def _write_masks(path: Path, spec: PathfinderSpec, batch: Batch) -> None:
    import numpy as np

    from castvision.data.synthetic.pathfinder import masks

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


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
