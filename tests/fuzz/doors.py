"""Mutated files through every door that reads files: ``python -m tests.fuzz.doors FOLDER FIRST END``.

Each line of the output is a number that begins, or a finding. The caller starts it again behind a number at which the
process died.
"""

from __future__ import annotations

import gc
import io
import os
import resource
import signal
import sys
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np

from castvision.data.datasets.samples import load_pixels
from castvision.data.reading import open_image, open_mask
from castvision.data.reading.overview import read_overview
from castvision.data.reading.pixels import MAX_PIXELS
from castvision.data.reading.reader import ImageReader
from castvision.data.reading.whole import read_image
from tests.fuzz.mutations import STORES, make, put

LONGEST = 10
"""Seconds of processor time that a door may take; the caller watches the clock."""
_MEMORY = 12 << 30
_WHOLE = 1 << 22  # pixels that are read at once; of larger images two corners
_SIDE = 64


def windows(reader: ImageReader) -> None:
    """Every level, and what the file says of itself."""
    assert reader.channels >= 1 and reader.dtype.kind in "buif", "no image"
    str(reader), reader.has_gaps, reader.pixel_area, reader.mpp, reader.channel_names
    for number, level in enumerate(reader.levels):
        height, width = level.height, level.width
        assert min(height, width) >= 1, f"a level of {height} × {width}"
        if height * width * reader.channels > _WHOLE:
            height, width = min(_SIDE, height), min(_SIDE, width)
        for y, x in {(0, 0), (level.height - height, level.width - width)}:
            pixels = reader.read_masked(y, x, height, width, number)
            expected = (height, width, reader.channels)
            assert (pixels.shape, pixels.dtype) == (expected, reader.dtype), (
                f"{pixels.shape} {pixels.dtype}, not {expected}"
            )


def by_windows(path: Path) -> None:
    """`open_image`."""
    with open_image(path) as reader:
        windows(reader)


def by_bands(path: Path) -> None:
    """The same, opacity kept and the first band chosen."""
    with open_image(path, bands=[1]) as reader:
        windows(reader)


def as_mask(path: Path) -> None:
    """`open_mask`."""
    with open_mask(path) as reader:
        windows(reader)


def as_whole(path: Path) -> None:
    """`read_image`, of files that are no folders."""
    if path.is_file():
        check_pixels(read_image(path))


def for_training(path: Path) -> None:
    """`load_pixels`, unless that is much: the sizes declared are read by the others."""
    with open_image(path) as reader:
        is_small = reader.height * reader.width * reader.channels <= _WHOLE
    if is_small:
        check_pixels(load_pixels(path, 3))


def at_a_glance(path: Path) -> None:
    """`read_overview`."""
    with open_image(path) as reader:
        if reader.height * reader.width * reader.channels <= _WHOLE:
            assert read_overview(reader, (8, 8)).shape == (reader.channels, 8, 8), "an overview of another shape"


def check_pixels(pixels: np.ndarray) -> None:
    """An image."""
    assert pixels.ndim == 3 and 1 <= pixels[..., 0].size <= MAX_PIXELS and pixels.dtype.kind in "buif", (
        f"{pixels.shape}"
    )


DOORS: tuple[Callable[[Path], None], ...] = (by_windows, by_bands, as_mask, as_whole, for_training, at_a_glance)


_running = ""


def _stop(*_: object) -> None:
    """The door took longer than `LONGEST`; what it leaves behind must not disturb the next one."""
    os.write(1, f"! {_running}: longer than {LONGEST} s\n".encode())  # sys.stdout may be redirected
    os._exit(0)


def outcome(door: Callable[[Path], None], path: Path) -> str | None:
    """What is wrong with what a door made of a file; None if it is an image or an error of ours."""
    try:
        door(path)
    except (ValueError, ImportError) as error:
        text = str(error)
        if type(error).__module__.split(".")[0] not in ("builtins", "castvision") or isinstance(error, UnicodeError):
            return f"foreign {type(error).__qualname__}: {text}"
        if isinstance(error, ImportError) and "pip install" not in text:
            return f"foreign ImportError: {text}"
        if "\n" in text or str(path) not in text or len(text) > 2000:
            return f"not one line with the file's name: {text!r}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def open_files() -> int:
    """Handles of this process."""
    return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0


def findings_of(number: int, folder: Path, doors: tuple[Callable[[Path], None], ...] = DOORS) -> list[str]:
    """What is wrong with what the doors made of a number's file."""
    path = put(folder, *make(number))
    found = []
    global _running
    for door in doors:
        _running = f"{number} {path.suffix} {door.__name__}"
        before = open_files()
        signal.setitimer(signal.ITIMER_PROF, LONGEST)
        wrong = outcome(door, path)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if open_files() > before:
            gc.collect()
        if wrong is None and open_files() > before:
            wrong = f"{open_files() - before} file(s) stay open"
        if wrong is not None:
            found.append(f"{_running}: {wrong}")
    return found


def command_doors(folder: Path, model: str, mask: str) -> tuple[Callable[[Path], None], ...]:
    """``castvision predict`` and ``castvision evaluate`` on the file; the codes they may end with."""
    from castvision_cli import main

    def run(*words: str) -> None:
        output, errors = io.StringIO(), io.StringIO()
        with redirect_stdout(output), redirect_stderr(errors):
            code = main([*words, "--overwrite", "--output", str(folder / "out")])
        told = output.getvalue() + errors.getvalue()
        if code not in (0, 1, 2) or "Traceback" in told or (code and not told):
            raise RuntimeError(f"exit code {code}: {told[-500:]}")

    def predicted(path: Path) -> None:
        run("predict", str(path), "--model", model, "--no-overlay")

    def evaluated(path: Path) -> None:
        run("evaluate", "--images", str(path), "--masks", mask, "--model", model)
        run("evaluate", "--images", mask, "--masks", str(path), "--model", model)

    return predicted, evaluated


def main(folder: Path, first: int, end: int, *rest: str) -> None:
    """Run numbers first..end - 1; with a model and a mask through the commands, else through the readers."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    signal.signal(signal.SIGPROF, _stop)
    warnings.simplefilter("ignore")
    doors = command_doors(folder, *rest) if rest else DOORS
    for store in STORES:  # zarr's own threads and handles, which stay
        for door in doors:
            outcome(door, put(folder, "zarr", store))
    for number in range(first, end):
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        for finding in findings_of(number, folder, doors):
            sys.stdout.write(f"! {finding}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
